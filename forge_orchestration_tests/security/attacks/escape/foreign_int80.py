"""Calls the kernel by `int 0x80`, as a 32-bit program does: each number then means another call than the filter thinks."""

import ctypes
import mmap

from evidence import attempt, done

page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))  # mov eax, getpid of 32 bits; int 0x80; ret
code = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
attempt("about to", lambda: "int 0x80")
attempt("getpid", code)
done()
