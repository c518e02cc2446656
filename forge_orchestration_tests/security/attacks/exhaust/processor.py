"""Keeps more processors busy than it was given, with as many processes as it may have."""

import os
import time

from evidence import TARGETS, done, say

end = time.monotonic() + TARGETS["seconds"]
children = []
for _ in range(TARGETS["processes"]):
    if (child := os.fork()) == 0:
        while time.monotonic() < end:
            pass
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
say(spun=len(children))
done()
