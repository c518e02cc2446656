"""Fills the disk with what is not in files: names, links, attributes, access lists."""

import os

from evidence import attempt, done, syscall


def hard_links():
    open("/forge/scratch/one", "w").close()
    for number in range(1_000_000):
        os.link("/forge/scratch/one", f"/forge/scratch/{number}".ljust(240, "x"))


def attributes():
    for number in range(1_000_000):
        path = f"/tmp/{number}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        syscall("setxattr", path.encode(), b"user.harm", bytes(900), 900, 0)


def long_links():
    for number in range(1_000_000):
        os.symlink("x" * 1000, f"/forge/checkpoint/{number}")


attempt("hard links", hard_links)
attempt("attributes", attributes)
attempt("symbolic links", long_links)
done()
raise SystemExit(1)
