"""Makes files that are larger than the disk, for whoever copies, hashes or counts them."""

import os

from evidence import attempt, done, say


def giant(path, size):
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, size)
    os.pwrite(fd, b"x", size - 1)
    return size


for size in (1 << 30, 1 << 40, 1 << 43, 1 << 50, (1 << 63) - 1):
    attempt(f"{size} bytes", giant, f"/forge/outputs/giant{size}", size)
say(blocks=sum(os.stat(f"/forge/outputs/{name}").st_blocks for name in os.listdir("/forge/outputs")))
done()
