"""A tree of 1,000 processes, none of which hears SIGTERM."""

import os
import signal
import time

from evidence import say

signal.signal(signal.SIGTERM, signal.SIG_IGN)
reading, writing = os.pipe()
for _ in range(10):
    if os.fork() == 0:
        for _ in range(99):
            if os.fork() == 0:
                break
        os.write(writing, b"x")
        while True:
            time.sleep(600)
total = 0
while total < 1000:
    total += len(os.read(reading, 1000))
say(alive=total)
while True:
    time.sleep(600)
