"""A chain of processes, each the child of the one before, as long as it may be; the last one lives."""

import os
import time

from evidence import TARGETS, done, say

reading, writing = os.pipe()
depth = 0
while True:
    try:
        child = os.fork()
    except OSError:
        break
    if child != 0:
        if depth == 0:
            say(depth=int(os.read(reading, 16)))
            done()
            os._exit(0)
        time.sleep(TARGETS["long_s"])
    depth += 1
os.write(writing, str(depth).encode())
time.sleep(TARGETS["long_s"])
