"""Changes process 1 of the sandbox, which is bubblewrap's: its memory, its name, its limits, its place in the queue."""

import os
import struct

from evidence import attempt, done, syscall, write

for name in (
    "mem",
    "comm",
    "oom_score_adj",
    "autogroup",
    "sched",
    "uid_map",
    "setgroups",
    "loginuid",
    "attr/current",
    "clear_refs",
    "timerslack_ns",
    "coredump_filter",
):
    attempt(name, write, f"/proc/1/{name}", b"1")
attempt("limits", syscall, "prlimit64", 1, 7, struct.pack("QQ", 0, 0), 0)
attempt("priority", os.setpriority, os.PRIO_PROCESS, 1, 19)
attempt("affinity", os.sched_setaffinity, 1, {0})
attempt("policy", os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))
attempt("group", os.setpgid, 1, 1)
done()
