"""Takes the whole scratch space without writing it, and looks for what an earlier execution left on those blocks."""

import mmap
import os

from evidence import attempt, done, say

for folder in ("/forge/scratch", "/forge/outputs", "/forge/checkpoint", "/tmp", "/dev/shm"):
    say(folder=folder, holds=os.listdir(folder))
fd = os.open("/forge/scratch/all", os.O_RDWR | os.O_CREAT)
space = os.statvfs("/forge/scratch")
size = min(space.f_bavail * space.f_frsize, 8 << 20) * 9 // 10
attempt("allocate", os.posix_fallocate, fd, 0, size)
data = os.pread(fd, size, 0)
say(read=len(data), not_zero=len(data) - data.count(0))
direct = os.open("/forge/scratch/all", os.O_RDONLY | os.O_DIRECT)
attempt("past the page cache", os.preadv, direct, [mmap.mmap(-1, 1 << 20)], 0)
done()
