"""Types into a terminal as if somebody had: whoever reads it next runs the command.

From: CVE-2017-5226 of bubblewrap itself (TIOCSTI), and CVE-2023-28339 and CVE-2023-1523 (TIOCLINUX).
"""

import fcntl
import os

from evidence import attempt, done, ioctl, syscall

STI, LINUX, CONS = 0x5412, 0x541C, 0x541D
pair = attempt("own terminal", os.openpty)
device = pair[1] if pair else os.open("/dev/null", os.O_RDWR)
for name, fd in (("own device", device), ("own pipe", os.pipe()[1]), ("standard input", 0), ("standard error", 2)):
    attempt(f"TIOCSTI {name}", fcntl.ioctl, fd, STI, b"x")
    attempt(f"TIOCSTI with high bits {name}", syscall, "ioctl", fd, STI | 1 << 32, b"x")
    attempt(f"TIOCLINUX {name}", fcntl.ioctl, fd, LINUX, b"\x02")
    attempt(f"TIOCLINUX with high bits {name}", syscall, "ioctl", fd, LINUX | 1 << 40, b"\x02")
attempt("the console", ioctl, "/dev/console", CONS)
attempt("of its session", os.open, "/dev/tty", os.O_RDWR)
done()
