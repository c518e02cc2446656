"""Fills the disk through each folder that it may write, and goes on when it is refused."""

import os

from evidence import TARGETS, attempt, done, say

MIB = 1 << 20


def fill(path):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    while True:
        os.write(fd, os.urandom(MIB))


def allocate(path):
    os.posix_fallocate(os.open(path, os.O_WRONLY | os.O_CREAT), 0, 1 << 30)


def unnamed(folder):
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR)
    while True:
        os.write(fd, os.urandom(MIB))


folder = TARGETS["folder"]
attempt("fill", fill, f"{folder}/harm")
attempt("fill another", fill, f"{folder}/harm2")
attempt("allocate", allocate, f"{folder}/harm3")
attempt("deleted but open", unnamed, folder)
for other in ("/forge/scratch", "/forge/outputs", "/forge/checkpoint", "/tmp"):
    attempt(f"in {other} as well", fill, f"{other}/harm4")
say(free=os.statvfs("/forge/scratch").f_bavail * os.statvfs("/forge/scratch").f_frsize)
done()
raise SystemExit(1)
