"""Reads and writes files that are larger than its memory: their pages count, and go when they must."""

import os

from evidence import done, say

for _ in range(3):
    with open("/forge/scratch/large", "wb") as file:
        for _ in range(24):
            file.write(os.urandom(1 << 20))
    with open("/forge/scratch/large", "rb") as file:
        total = sum(len(data) for data in iter(lambda: file.read(1 << 20), b""))
say(read=total)
done()
