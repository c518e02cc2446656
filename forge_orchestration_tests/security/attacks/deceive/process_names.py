"""Names its processes like others and like fields of `/proc`, to fool whoever reads a list of them while it runs."""

import os
import shutil
import time

from evidence import LIBC, done, read, say

NAMES = (b"bwrap", b"a) Z 1 (", b"x\nUid:\t0 0 0 0", b"x\nSeccomp: 0", b"systemd", b")))) R", b" ")
children = []
for name in NAMES:
    if (child := os.fork()) == 0:
        LIBC.prctl(15, name, 0, 0, 0)  # PR_SET_NAME
        time.sleep(0.5)
        os._exit(0)
    children.append(child)
shutil.copy(shutil.which("sleep"), "/forge/scratch/bwrap")
children.append(os.posix_spawn("/forge/scratch/bwrap", ["/usr/bin/setpriv", "0.5"], {}))
time.sleep(0.1)
say(named=[read(f"/proc/{child}/comm").decode(errors="replace") for child in children])
for child in children:
    os.waitpid(child, 0)
done()
