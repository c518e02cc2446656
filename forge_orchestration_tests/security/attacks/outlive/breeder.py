"""Ten lines of processes that each live for an instant and leave a child: a list of them is wrong as soon as it is made."""

import os
import signal
import time

from evidence import say

signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(10):
    try:
        started = os.fork()
    except OSError:  # the lines before have taken all places for the moment
        continue
    if started == 0:
        os.setsid()
        while True:
            try:
                if os.fork() != 0:
                    os._exit(0)
            except OSError:
                time.sleep(0.001)
say(attempt="begun", error=None)
while True:
    time.sleep(600)
