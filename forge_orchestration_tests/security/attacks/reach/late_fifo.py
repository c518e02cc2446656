"""Waits for a program of the host to make a FIFO in a folder that is an input, and writes into it."""

import os
import time

from evidence import attempt, done, say, write

path = "/forge/inputs/folder/late.fifo"
say(waiting=True)
deadline = time.monotonic() + 10
while not os.path.exists(path) and time.monotonic() < deadline:
    time.sleep(0.01)
attempt("write", write, path)
done()
