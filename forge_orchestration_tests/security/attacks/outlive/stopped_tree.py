"""Leaves a tree of processes that are all stopped: a signal that can be caught does not even reach them."""

import os
import signal
import time

from evidence import done, say

children = []
for _ in range(6):
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)
    children.append(child)
stopped = 0
for child in children:
    _, status = os.waitpid(child, os.WUNTRACED)
    stopped += os.WIFSTOPPED(status)
say(stopped=stopped)
done()
