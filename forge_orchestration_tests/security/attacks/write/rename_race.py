"""Writes to a path whose folder another process exchanges all the time for a link to an input folder.

From: every check of a path that is not the use of it.
"""

import os
import time

from evidence import done, say, syscall

os.chdir("/forge/scratch")
os.mkdir("real")
os.symlink("/forge/inputs/folder", "link")
end = time.monotonic() + 0.5
if os.fork() == 0:
    while time.monotonic() < end:
        syscall("renameat2", -100, b"real", -100, b"link", 2)
    os._exit(0)
refused = written = exchanged = 0
while time.monotonic() < end:
    try:
        fd = os.open("real/inner.txt", os.O_WRONLY | os.O_CREAT)
        written += os.write(fd, b"harm")
        os.close(fd)
    except OSError:
        refused += 1
    exchanged += os.path.islink("real")
os.wait()
say(written=written, refused=refused, exchanged=exchanged)
done()
