"""Traces processes: process 1, to run code in it; a child, to change its system calls after the filter has seen them.

From: a tracer could change a call between the check and the use on kernels before 4.8.
"""

import os

from evidence import attempt, done, in_child, syscall

TRACEME, ATTACH, SEIZE, PEEKTEXT = 0, 16, 0x4206, 1
attempt("attach to the first", syscall, "ptrace", ATTACH, 1, 0, 0)
attempt("seize the first", syscall, "ptrace", SEIZE, 1, 0, 0)
attempt("attach to the parent", syscall, "ptrace", ATTACH, os.getppid(), 0, 0)
attempt("peek", syscall, "ptrace", PEEKTEXT, 1, 0x400000, 0)
attempt("trace a child", in_child, syscall, "ptrace", TRACEME, 0, 0, 0)
attempt("compare", syscall, 312, 1, os.getpid(), 0, 0, 0)
attempt("write to its memory", syscall, "process_vm_writev", 1, 0, 0, 0, 0, 0)
done()
