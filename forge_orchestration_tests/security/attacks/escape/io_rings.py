"""Sets up io_uring, whose operations pass no system call filter and were the way out of many a sandbox."""

import ctypes
import os

from evidence import attempt, done, syscall

attempt("setup", syscall, "io_uring_setup", 8, ctypes.create_string_buffer(120))
attempt("enter", syscall, 426, 0, 1, 1, 1, 0, 0)
attempt("register", syscall, 427, -1, 0, 0, 0)
attempt("userfaultfd", syscall, "userfaultfd", 1)
attempt("userfaultfd device", os.open, "/dev/userfaultfd", os.O_RDWR)
done()
