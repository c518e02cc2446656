"""Reads the kernel's keyrings, which are shared by all processes of a user, containers included."""

from evidence import attempt, done, read, syscall

GET_KEYRING_ID, DESCRIBE, READ, SEARCH, GET_PERSISTENT = 0, 6, 11, 10, 22
THREAD, SESSION, USER, USER_SESSION = -1, -3, -4, -5
attempt("/proc/keys", read, "/proc/keys", 1 << 16)
attempt("/proc/key-users", read, "/proc/key-users", 1 << 16)
for name, ring in {"session": SESSION, "user": USER, "user session": USER_SESSION, "thread": THREAD}.items():
    attempt(f"id of {name}", syscall, "keyctl", GET_KEYRING_ID, ring, 1)
    attempt(f"read {name}", syscall, "keyctl", READ, ring, 0, 0)
attempt("persistent", syscall, "keyctl", GET_PERSISTENT, -1, SESSION)
attempt("request", syscall, "request_key", b"user", b"secret", 0, SESSION)
attempt("add", syscall, "add_key", b"user", b"forge", b"x", 1, USER)
done()
