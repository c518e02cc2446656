"""Takes room on the disk that is in no file's size: beyond the end of a file, and of one without a name."""

import fcntl
import os
import struct

from evidence import attempt, done, say, syscall

KEEP_SIZE = 1
WAYS = {"FS_IOC_RESVSP": 0x40305828, "FS_IOC_RESVSP64": 0x4030582A, "FS_IOC_ZERO_RANGE": 0x40305839}
ROOM = struct.pack("hh4xqqiI4i", 0, 0, 0, 300 << 20, 0, 0, 0, 0, 0, 0)
for name in ("named", "unnamed"):
    file = os.open("/forge/scratch/file", os.O_RDWR | os.O_CREAT)
    if name == "unnamed":
        os.unlink("/forge/scratch/file")
    attempt(f"beyond the end of a {name} file", syscall, "fallocate", file, KEEP_SIZE, 0, 300 << 20)
    for way, request in WAYS.items():
        attempt(f"{way} in a {name} file", fcntl.ioctl, file, request, ROOM)
    say(name=name, blocks=os.fstat(file).st_blocks)
done()
