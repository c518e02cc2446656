"""Climbs with `..` from every mount that leads to the host, by path, by descriptor and by working folder.

From: runc's CVE-2024-21626, where a descriptor of a host folder was left open and `..` led on from there.
"""

import os

from evidence import TARGETS, attempt, done, read

up = "../" * 30
for start in (
    "/forge/inputs/folder",
    "/forge/runtime",
    "/forge/scratch",
    "/forge/outputs",
    "/tmp",
    "/usr",
    "/dev/shm",
    "/proc/self/fd",
):
    for secret in (TARGETS["secret"], TARGETS["readable"]):
        attempt(f"{start} {os.path.basename(secret)}", read, f"{start}/{up}{secret}")
    fd = os.open(start, os.O_RDONLY | os.O_DIRECTORY)
    attempt(f"{start} sibling", os.stat, "../readable.txt", dir_fd=fd)
    os.fchdir(fd)
    os.chdir(up)
    attempt(f"{start} chdir", os.stat, TARGETS["readable"].lstrip("/"))
attempt("/proc/self/root", read, f"/proc/self/root/{up}{TARGETS['readable']}")
attempt("/proc/self/cwd", read, f"/proc/self/cwd/{up}{TARGETS['readable']}")
attempt("/proc/1/root", read, f"/proc/1/root{TARGETS['readable']}")
attempt("/proc/1/cwd", read, f"/proc/1/cwd/{up}{TARGETS['readable']}")
done()
