"""Collects what the tables of mounts and process 1 tell of others: it must be nothing but its own execution."""

import os

from evidence import TARGETS, attempt, done, read, say

texts = []
for path in (
    "/proc/self/mountinfo",
    "/proc/self/mounts",
    "/proc/self/mountstats",
    "/proc/1/mountinfo",
    "/proc/1/cmdline",
    "/proc/self/cgroup",
    "/proc/1/cgroup",
):
    texts.append(attempt(path, read, path, 1 << 20) or b"")
told = b"\n".join(texts)
names = [os.path.basename(TARGETS[name]) for name in ("neighbour", "victim")]
say(told=len(told), others=[name for name in names if name.encode() in told])
done()
