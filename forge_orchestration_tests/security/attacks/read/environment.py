"""Reads the environment: its own, what its process was started with, and that of the shells before it."""

import os

from evidence import attempt, done, read, say

say(environment=dict(os.environ), parent=os.getppid())
attempt("as started", read, "/proc/self/environ", 1 << 16)
attempt("of the first process", read, "/proc/1/environ")
attempt("of the parent", read, f"/proc/{os.getppid()}/environ")
done()
