"""Leaves a daemon behind as daemons do: two forks, a session of its own, nothing open, another folder."""

import os
import time

from evidence import TARGETS, done, say

reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        os.umask(0)
        os.write(writing, b"alive")
        for fd in range(64):
            try:
                os.close(fd)
            except OSError:
                pass
        time.sleep(TARGETS["long_s"])
    os._exit(0)
say(left=os.read(reading, 5).decode())
done()
