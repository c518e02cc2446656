"""Uses every descriptor that it was started with: a forgotten one would lead to the host.

From: CVE-2024-21626 again, and docker's CVE-2016-9962.
"""

import contextlib
import fcntl
import os
import stat

from evidence import attempt, done, say

found = {}
for fd in range(65_536):
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_GETFD)
        found[fd] = stat.filemode(os.fstat(fd).st_mode)[0]
say(descriptors=found)
attempt("standard input", os.read, 0, 100)
attempt("standard input as a folder", os.open, "..", os.O_RDONLY, dir_fd=0)
attempt("standard input for writing", os.write, 0, b"x")
attempt("own log", os.read, 1, 100)
done()
