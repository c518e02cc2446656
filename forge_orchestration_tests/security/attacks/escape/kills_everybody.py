"""Signals every process that it can: all of its own, those of the host by number, and process 1."""

import os
import signal

from evidence import TARGETS, attempt, done

for name in ("controller_pid", "supervisor_pid"):
    attempt(name, os.kill, TARGETS[name], signal.SIGKILL)
for pid in TARGETS["neighbour_pids"]:
    attempt(f"neighbour {pid}", os.kill, pid, signal.SIGKILL)
attempt("first", os.kill, 1, signal.SIGSTOP)
attempt("group of the first", os.killpg, 1, 0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
attempt("all", os.kill, -1, signal.SIGTERM)
done()
