"""Locks files that it shares with the host and with others, so that whoever honours the lock waits for ever.

From: a channel that few sandboxes close. HDF5 and SQLite refuse a file that is locked.
"""

import fcntl
import os
import time

from evidence import attempt, done, say

files = [
    os.open(path, os.O_RDONLY) for path in ("/forge/inputs/data", "/forge/inputs/folder/inner.txt", "/forge/runtime/pyvenv.cfg")
]
for name, fd in zip(("data", "inner", "runtime"), files, strict=True):
    attempt(f"exclusive {name}", fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
say(locked=True)
deadline = time.monotonic() + 1
while time.monotonic() < deadline:
    time.sleep(0.05)
done()
