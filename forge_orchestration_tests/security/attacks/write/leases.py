"""Takes leases and write locks on what it shares, which would stop the host from opening its own files."""

import fcntl
import os

from evidence import attempt, done

for path in ("/forge/inputs/data", "/usr/bin/env", "/forge/params.json"):
    fd = os.open(path, os.O_RDONLY)
    attempt(f"read lease {path}", fcntl.fcntl, fd, 1024, fcntl.F_RDLCK)
    attempt(f"write lease {path}", fcntl.fcntl, fd, 1024, fcntl.F_WRLCK)
    attempt(f"delegation {path}", fcntl.fcntl, fd, 1040, bytes(8))
    attempt(f"write lock {path}", fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
done()
