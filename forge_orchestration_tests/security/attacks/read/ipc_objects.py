"""Opens the host's shared memory, semaphores and queues, by key and by name."""

import ctypes

from evidence import TARGETS, attempt, done, read, syscall

key, identifier = TARGETS["shm_key"], TARGETS["shm_id"]
attempt("shmget", syscall, "shmget", key, 0, 0o444)
attempt("shmat", syscall, "shmat", identifier, 0, 0o10000)
attempt("shmctl", syscall, "shmctl", identifier, 2, ctypes.create_string_buffer(256))
attempt("semget", syscall, "semget", key, 0, 0o444)
attempt("msgget", syscall, "msgget", key, 0o444)
attempt("mq_open", syscall, "mq_open", b"forge-canary", 0, 0, 0)
attempt("/dev/shm", read, TARGETS["shm_file"])
attempt("/dev/mqueue", read, "/dev/mqueue")
for name in ("shm", "sem", "msg"):
    attempt(f"/proc/sysvipc/{name}", lambda name=name: read(f"/proc/sysvipc/{name}", 4096).count(b"\n") - 1)
done()
