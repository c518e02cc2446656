"""Raises its own limits and its place in every queue: files, memory, priorities, disks, and who dies when memory runs out."""

import os
import resource
import struct

from evidence import attempt, done, say, syscall, write

FOREVER = 2**64 - 1
for name in ("CORE", "NICE", "RTPRIO", "MSGQUEUE", "MEMLOCK", "NPROC", "NOFILE", "SIGPENDING"):
    number = getattr(resource, f"RLIMIT_{name}")
    if resource.getrlimit(number)[1] != resource.RLIM_INFINITY:
        attempt(f"limit {name}", syscall, "prlimit64", 0, number, struct.pack("QQ", FOREVER, FOREVER), 0)
attempt("limit CORE, the older way", resource.setrlimit, resource.RLIMIT_CORE, (0, 0))
say(core=resource.getrlimit(resource.RLIMIT_CORE))
attempt("nice", os.setpriority, os.PRIO_PROCESS, 0, -20)
for policy in ("FIFO", "RR"):
    attempt(f"schedule {policy}", os.sched_setscheduler, 0, getattr(os, f"SCHED_{policy}"), os.sched_param(1))
attempt("deadline", syscall, 314, 0, struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10_000_000, 20_000_000, 20_000_000), 0)
attempt("disk first", syscall, "ioprio_set", 1, 0, 1 << 13)
for value in ("-1000", "-1"):
    attempt(f"killed last {value}", write, "/proc/self/oom_score_adj", value.encode())
done()
