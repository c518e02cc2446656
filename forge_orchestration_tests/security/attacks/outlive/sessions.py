"""Leaves processes behind in sessions and groups of their own, deaf to every signal that can be refused."""

import os
import signal
import time

from evidence import TARGETS, done, say

ready, begun = os.pipe()
for number in range(8):
    if os.fork() == 0:
        os.setsid()
        for one in range(1, signal.NSIG):
            try:
                signal.signal(one, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.write(begun, b"x")
        time.sleep(TARGETS["long_s"])
        os._exit(number)
total = 0
while total < 8:
    total += len(os.read(ready, 8))
say(left=total)
done()
