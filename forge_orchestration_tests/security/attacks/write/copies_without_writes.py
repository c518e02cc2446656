"""Changes a file with calls that never say "write": clones, shared extents, copies inside the kernel, spliced pipes."""

import fcntl
import os
import struct

from evidence import attempt, done, syscall

mine = os.open("/forge/scratch/mine", os.O_RDWR | os.O_CREAT)
os.write(mine, b"harm" * 1024)
reading, writing = os.pipe()
os.write(writing, b"harm")
for path in ("/forge/inputs/data", "/forge/inputs/folder/inner.txt", "/usr/bin/env"):
    fd = os.open(path, os.O_RDONLY)
    attempt(f"{path} copy_file_range", os.copy_file_range, mine, fd, 4, 0, 0)
    attempt(f"{path} sendfile", os.sendfile, fd, mine, 0, 4)
    attempt(f"{path} splice", os.splice, reading, fd, 4)
    attempt(f"{path} clone", fcntl.ioctl, fd, 0x40049409, mine)
    attempt(f"{path} clone range", fcntl.ioctl, fd, 0x4020940D, struct.pack("qQQQ", mine, 0, 4096, 0))
    attempt(f"{path} collapse", syscall, 285, fd, 8, 0, 4096)
    attempt(f"{path} exchange", fcntl.ioctl, mine, 0xC028660F, struct.pack("IIQQQQ", 0, fd, 0, 0, 1, 0))
done()
