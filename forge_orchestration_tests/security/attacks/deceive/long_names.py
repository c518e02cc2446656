"""Leaves thousands of outputs that cannot be kept, with the longest names there are, for the record to list."""

import os

from evidence import done, say

fd = os.open("/forge/outputs", os.O_RDONLY)
for _ in range(7):
    os.mkdir("d" * 255, dir_fd=fd)
    below = os.open("d" * 255, os.O_RDONLY, dir_fd=fd)
    os.close(fd)
    fd = below
made = 0
try:
    while made < 1500:
        os.close(os.open(f"{made:05}" + "\x01" * 250, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        made += 1
except OSError:
    pass
say(made=made)
done()
