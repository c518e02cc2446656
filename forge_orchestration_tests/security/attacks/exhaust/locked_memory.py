"""Locks memory that can then not be taken from it, past its limit on locked memory; and asks for huge pages."""

import ctypes
import mmap

from evidence import LIBC, attempt, done

LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


def lock(size):
    area = LIBC.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    ctypes.set_errno(0)
    if LIBC.mlock(ctypes.c_void_p(area), ctypes.c_size_t(size)) != 0:
        raise OSError(ctypes.get_errno(), "mlock")


def everything():
    ctypes.set_errno(0)
    if LIBC.mlockall(7) != 0:
        raise OSError(ctypes.get_errno(), "mlockall")
    for _ in range(64):
        mmap.mmap(-1, 1 << 20)


attempt("mlock", lock, 1 << 30)
attempt("huge pages", mmap.mmap, -1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
attempt("mlockall", everything)
done()
