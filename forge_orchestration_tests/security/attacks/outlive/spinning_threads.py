"""Fills its processes with threads that spin in the kernel and in the program, with every signal blocked."""

import os
import signal
import threading

from evidence import say

signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def spin():
    while True:
        os.getppid()


for _ in range(3):
    if os.fork() == 0:
        break
for _ in range(4):
    threading.Thread(target=spin).start()
say(attempt="spinning", error=None)
