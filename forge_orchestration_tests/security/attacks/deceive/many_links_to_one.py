"""Leaves one large file under a thousand names: a collector that copies each has a thousand times its size."""

import os

from evidence import done, say

with open("/forge/outputs/one", "wb") as file:
    file.write(os.urandom(1 << 20))
for number in range(1000):
    os.link("/forge/outputs/one", f"/forge/outputs/{number:04}")
say(apparent=1001 << 20)
done()
