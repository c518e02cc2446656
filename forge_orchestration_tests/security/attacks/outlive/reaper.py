"""Makes itself the reaper of its orphans, ends bubblewrap's first process if it can, and goes on without it."""

import os
import signal
import time

from evidence import LIBC, TARGETS, attempt, done, say

attempt("reaper", lambda: LIBC.prctl(36, 1, 0, 0, 0))
if os.fork() == 0:
    LIBC.prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG: no signal when the parent dies
    if os.fork() == 0:
        time.sleep(TARGETS["long_s"])
    os._exit(0)
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
    attempt(f"first process {number.name}", os.kill, 1, number)
time.sleep(0.1)
say(first_is_there=os.path.exists("/proc/1/status"))
done()
