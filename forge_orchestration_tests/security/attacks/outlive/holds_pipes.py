"""Ends, and leaves orphans that hold its standard output and go on writing to it: whoever waits for its end of file waits long."""

import os
import signal
import time

from evidence import TARGETS, done, say

for _ in range(4):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setsid()
        end = time.monotonic() + TARGETS["long_s"]
        while time.monotonic() < end:
            os.write(1, b"still here\n")
            time.sleep(0.001)
        os._exit(0)
time.sleep(0.2)
say(left=4)
done()
