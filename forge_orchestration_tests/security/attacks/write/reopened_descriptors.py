"""Opens what it may only read once more for writing, through `/proc/self/fd`, which knows no read-only descriptor.

From: runc's CVE-2019-5736, in which the host's own program was overwritten in this way.
"""

import os

from evidence import attempt, done, syscall

for path in ("/forge/inputs/data", "/forge/inputs/folder/inner.txt", "/usr/bin/env", "/forge/params.json", "/etc/passwd"):
    for kind, flags in (("read", os.O_RDONLY), ("path", os.O_PATH)):
        fd = os.open(path, flags)
        attempt(f"{path} {kind} for writing", os.open, f"/proc/self/fd/{fd}", os.O_WRONLY)
        attempt(f"{path} {kind} for both", os.open, f"/dev/fd/{fd}", os.O_RDWR)
        attempt(f"{path} {kind} truncate", os.truncate, f"/proc/self/fd/{fd}", 0)
        attempt(f"{path} {kind} chmod", os.chmod, f"/proc/self/fd/{fd}", 0o777)
        attempt(f"{path} {kind} attribute", syscall, "setxattr", f"/proc/self/fd/{fd}".encode(), b"user.harm", b"x", 1, 0)
done()
