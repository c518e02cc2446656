"""Installs a system call filter of its own: that allows everything, that hands each decision to itself, that has each call logged.

From: of several filters the strictest answer holds, or should; and what a filter logs is a line in the host's kernel log, as root if
the analysis may call itself so.
"""

import ctypes
import struct

from evidence import NUMBERS, attempt, done, syscall

SET_MODE_FILTER, NEW_LISTENER, ALLOW, USER_NOTIF, TRACE, LOG = 1, 8, 0x7FFF0000, 0x7FC00000, 0x7FF00000, 0x7FFC0000


def install(answer, flags=0):
    """A filter of four instructions: load the number; if it is that of `mount`, `answer`; else allow."""
    words = ((0x20, 0, 0, 0), (0x15, 0, 1, NUMBERS["mount"]), (0x06, 0, 0, answer), (0x06, 0, 0, ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *word) for word in words), 32)
    return syscall("seccomp", SET_MODE_FILTER, flags, struct.pack("HxxxxxxQ", len(words), ctypes.addressof(code)))


def mount():
    return syscall("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, 0)


for name, answer, flags in (("allow", ALLOW, 0), ("trace", TRACE, 0), ("log", LOG, 0), ("ask itself", USER_NOTIF, NEW_LISTENER)):
    attempt(f"filter: {name}", install, answer, flags)
    attempt(f"mount after {name}", mount)
attempt("unshare", syscall, "unshare", 0x10000000)
attempt("no filter any more", syscall, "prctl", 22, 0, 0, 0, 0)
attempt("by the other call", syscall, "prctl", 22 | 1 << 32, 2, 0, 0, 0)
done()
