"""Says that it is done and ends well, while a process that it left goes on changing its outputs."""

import os
import signal
import time

from evidence import TARGETS, done, say

reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = time.monotonic() + TARGETS["long_s"]
    number = 0
    while time.monotonic() < end:
        with open("/forge/outputs/result.txt", "w") as file:
            file.write(str(number))
        number += 1
        if number == 10:
            os.write(writing, b"x")
    os._exit(0)
os.read(reading, 1)
say(left=1)
done()
