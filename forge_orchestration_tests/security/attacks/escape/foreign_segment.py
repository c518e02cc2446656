"""Jumps into a 32-bit code segment, in the same process, and calls the kernel from there."""

import ctypes
import mmap
import struct

from evidence import attempt, done

LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
MAP_32BIT = 0x40
everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
page = LIBC.mmap(None, 4096, everything, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT, -1, 0)
# at 64: mov eax, getpid of 32 bits; int 0x80; hlt.  At 0: push the segment 0x23, push its address, return far
ctypes.memmove(page + 64, bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xF4]), 8)
ctypes.memmove(page, b"\x6a\x23\x68" + struct.pack("<I", page + 64) + b"\x48\xcb", 9)
attempt("about to", lambda: hex(page))
attempt("far return", ctypes.CFUNCTYPE(ctypes.c_int)(page))
done()
