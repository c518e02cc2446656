"""Reads the kernel's and the machine's memory, through the nodes that are there and through new ones of its own."""

import os
import stat

from evidence import attempt, done, read

for path in (
    "/dev/mem",
    "/dev/kmem",
    "/dev/port",
    "/dev/core",
    "/proc/kcore",
    "/dev/cpu/0/msr",
    "/dev/nvram",
    "/proc/kpagecount",
    "/proc/vmallocinfo",
):
    attempt(path, read, path)
for name, minor in (("mem", 1), ("kmem", 2), ("port", 4)):
    attempt(f"mknod {name}", os.mknod, f"/forge/scratch/{name}", stat.S_IFCHR | 0o666, os.makedev(1, minor))
done()
