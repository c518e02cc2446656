"""Becomes somebody else, or takes capabilities back, with each call that can."""

import os
import struct

from evidence import attempt, done, read, say, syscall

AMBIENT, RAISE, SECUREBITS, KEEPCAPS, NO_NEW_PRIVS, CAP_SYS_ADMIN = 47, 2, 28, 8, 38, 21
for name in ("setuid", "setgid", "seteuid", "setegid"):
    attempt(name, getattr(os, name), 0)
attempt("setreuid", os.setreuid, 0, 0)
attempt("setresuid", os.setresuid, 0, 0, 0)
attempt("setresgid", os.setresgid, 0, 0, 0)
attempt("setgroups", os.setgroups, [0, 6])
attempt("initgroups", os.initgroups, "root", 0)
for version in (0x20080522, 0x20071026):
    attempt(f"capset {version:x}", syscall, "capset", struct.pack("Ii", version, 0), struct.pack("IIIIII", *(0xFFFFFFFF,) * 6))
attempt("ambient", syscall, "prctl", AMBIENT, RAISE, CAP_SYS_ADMIN, 0, 0)
attempt("securebits", syscall, "prctl", SECUREBITS, 0x2F, 0, 0, 0)
attempt("new privileges again", syscall, "prctl", NO_NEW_PRIVS, 0, 0, 0, 0)
status = read("/proc/self/status", 4096).decode().splitlines()
syscall(122, 0)  # setfsuid says nothing of its failure: it returns whom it was before
say(host=os.uname().nodename, session=os.getsid(0))
say(
    fsuid=syscall(122, -1),
    status=[line.split() for line in status if line.startswith(("Uid", "Gid", "Cap", "NoNew", "Seccomp:"))],
)
done()
