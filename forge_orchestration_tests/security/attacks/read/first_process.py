"""Looks into process 1 of the sandbox, which is bubblewrap's and was root: its environment, memory, files and stack."""

import os

from evidence import attempt, done, read

for name in ("environ", "mem", "auxv", "stack", "syscall", "io", "pagemap", "fd", "map_files", "root", "cwd", "timerslack_ns"):
    attempt(name, read, f"/proc/1/{name}")
for name in ("exe", "cwd", "root", "ns/mnt", "ns/user"):
    attempt(f"link {name}", os.readlink, f"/proc/1/{name}")
attempt("descriptor 3", read, "/proc/1/fd/3")
done()
