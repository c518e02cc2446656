"""Changes the root folder: `chroot` and climb out, as has worked since 1979, and `pivot_root`."""

import os

from evidence import TARGETS, attempt, done, read, syscall

os.mkdir("/forge/scratch/jail")
outside = os.open("/", os.O_RDONLY)
attempt("chroot", syscall, "chroot", b"/forge/scratch/jail")
os.fchdir(outside)
for _ in range(64):
    os.chdir("..")
attempt("chroot here", syscall, "chroot", b".")
attempt("the secret", read, TARGETS["readable"])
attempt("pivot_root", syscall, "pivot_root", b"/forge/scratch", b"/forge/scratch/jail")
attempt("pivot_root here", syscall, "pivot_root", b".", b".")
done()
