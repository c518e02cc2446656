"""Types into a terminal as if somebody had: whoever reads it next runs the command.

From: CVE-2017-5226 of bubblewrap itself (TIOCSTI), and CVE-2023-28339 and CVE-2023-1523 (TIOCLINUX).
"""

import fcntl
import os

from evidence import attempt, done, syscall

STI, LINUX, SCTTY, CONS = 0x5412, 0x541C, 0x540E, 0x541D
_, terminal = os.openpty()
for name, fd in (("own terminal", terminal), ("standard input", 0), ("standard error", 2)):
    attempt(f"TIOCSTI {name}", fcntl.ioctl, fd, STI, b"x")
    attempt(f"TIOCSTI with high bits {name}", syscall, "ioctl", fd, STI | 1 << 32, b"x")
    attempt(f"TIOCLINUX {name}", fcntl.ioctl, fd, LINUX, b"\x02")
    attempt(f"TIOCLINUX with high bits {name}", syscall, "ioctl", fd, LINUX | 1 << 40, b"\x02")
attempt("the console", fcntl.ioctl, terminal, CONS)
attempt("of its session", os.open, "/dev/tty", os.O_RDWR)
done()
