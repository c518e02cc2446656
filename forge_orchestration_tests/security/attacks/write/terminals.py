"""Writes to other people's terminals and to the console."""

import os

from evidence import attempt, done, read, write

for path in (
    "/dev/tty",
    "/dev/console",
    "/dev/tty0",
    "/dev/tty1",
    "/dev/vcs",
    "/dev/vcsa1",
    "/dev/ttyS0",
    "/dev/pts/0",
    "/dev/pts/1",
    "/dev/fb0",
    "/dev/input/event0",
):
    attempt(path, write, path, b"\033]0;harm\007")
attempt("pts", read, "/dev/pts")
attempt("controlling terminal", os.ctermid)
done()
