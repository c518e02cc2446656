"""Waits for a service of the host to make its socket in a folder that is an input, and talks to it.

From: a read-only mount stops no connection; this is how a read-only docker socket became root.
"""

import os
import socket
import time

from evidence import attempt, connect, done, say

path = "/forge/inputs/folder/late.sock"
say(waiting=True)
deadline = time.monotonic() + 10
while not os.path.exists(path) and time.monotonic() < deadline:
    time.sleep(0.01)
attempt("connect", connect, socket.AF_UNIX, path)
done()
