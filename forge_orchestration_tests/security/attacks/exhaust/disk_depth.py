"""Makes folders 10,000 deep, deeper than any path that the kernel takes, in scratch and among the outputs."""

import os

from evidence import TARGETS, attempt, done, say


def dig(folder, depth):
    fd = os.open(folder, os.O_RDONLY)
    made = 0
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd, made = below, made + 1
        os.close(os.open("treasure", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    finally:
        say(folder=folder, made=made)
    return made


attempt("outputs", dig, "/forge/outputs", TARGETS["depth"])
attempt("scratch", dig, "/forge/scratch", TARGETS["depth"])
done()
