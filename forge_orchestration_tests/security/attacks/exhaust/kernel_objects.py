"""Takes the kernel's small objects until there are no more, in the form that the test names.

Some come from a stock that the whole host shares: whoever empties it takes it from everybody.
"""

import ctypes
import fcntl
import os
import resource
import signal
import struct
import time

from evidence import LIBC, TARGETS, attempt, done, read, say, syscall

MOST = 200_000
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
taken = 0


def take(make, most=MOST):
    global taken
    while taken < most:
        if (made := make()) is not None and isinstance(made, int) and made < 0:
            raise OSError(ctypes.get_errno(), "")
        taken += 1


def timers():
    identifier = ctypes.c_int()
    # SIGEV_NONE: it tells nobody
    take(lambda: syscall("timer_create", 1, struct.pack("qii48x", 0, 0, 1), ctypes.byref(identifier)))


def queued_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
    value = ctypes.c_void_p(0)
    take(lambda: LIBC.sigqueue(os.getpid(), int(signal.SIGRTMIN), value))


def semaphores():
    take(lambda: syscall("semget", 0, 250, 0o1600))


def event_descriptors():
    take(lambda: os.eventfd(0))


def poll_sets():
    take(lambda: LIBC.epoll_create1(0))


def watches():
    take(lambda: LIBC.inotify_init1(0))


def terminals():
    take(lambda: os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))


def file_locks():
    fd = os.open("/forge/scratch/locked", os.O_RDWR | os.O_CREAT)
    position = iter(range(0, 1 << 40, 2))
    take(
        lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, next(position)), 10_000
    )  # each new one is compared with all that there are


def mappings():
    LIBC.mmap.restype = ctypes.c_long
    LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    protection = iter(range(1 << 40))
    take(lambda: LIBC.mmap(None, 4096, 1 + 2 * (next(protection) % 2), 0x22, -1, 0))


def missing_names():
    take(lambda: os.path.exists(f"/forge/scratch/{taken}"), 50_000)


def asynchronous_io():
    context = ctypes.c_ulong(0)
    syscall("io_setup", 60_000, ctypes.byref(context))
    say(**{name: int(read(f"/proc/sys/fs/{name}")) for name in ("aio-nr", "aio-max-nr")})


say(form=TARGETS["form"])
attempt("all of them", globals()[TARGETS["form"]])
say(taken=taken, holding=True)
deadline = time.monotonic() + 10
while TARGETS["wait"] and not os.path.exists("/forge/inputs/folder/looked") and time.monotonic() < deadline:
    time.sleep(0.01)
done()
os._exit(0)
