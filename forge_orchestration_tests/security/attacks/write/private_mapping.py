"""Writes through `/proc/self/mem` to a mapping that it may only read: the kernel must write to a copy, or not at all."""

import ctypes
import mmap
import os

from evidence import attempt, done, say

fd = os.open("/forge/inputs/data", os.O_RDONLY)
size = os.fstat(fd).st_size
memory = os.open("/proc/self/mem", os.O_RDWR)
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
for name, flags in (("private", mmap.MAP_PRIVATE), ("shared", mmap.MAP_SHARED)):
    address = LIBC.mmap(None, size, mmap.PROT_READ, flags, fd, 0)
    attempt(name, os.pwrite, memory, b"harm", address)
    say(mapping=name, seen=ctypes.string_at(address, 4).decode(), file=os.pread(fd, 4, 0).decode())
done()
