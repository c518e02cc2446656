"""Calls the kernel by the numbers of x32, the third architecture of x86: `ptrace` without the number of `ptrace`."""

import os

from evidence import attempt, done, syscall

X32 = 0x40000000
attempt("about to", lambda: "x32")
attempt("getpid", syscall, X32 | 39)
attempt("ptrace", syscall, X32 | 521, 16, os.getppid(), 0, 0)
done()
