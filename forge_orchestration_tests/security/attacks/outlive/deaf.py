"""Ignores SIGTERM, goes on working, and never ends."""

import os
import signal
import time

from evidence import say

told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(os.write(1, b'{"attempt": "ignored SIGTERM", "error": null}\n')))
for one in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGALRM):
    signal.signal(one, signal.SIG_IGN)
say(deaf=True)
while True:
    time.sleep(0.05)
