"""Has the kernel start a program as root when a cgroup becomes empty.

From: CVE-2022-0492, and the shortest known way out of a privileged container on cgroup v1.
"""

import contextlib
import os

from evidence import attempt, done, say, syscall

os.makedirs("/forge/scratch/c", exist_ok=True)
for options in (b"memory", b"rdma", b"cpuset", b"none,name=harm"):
    attempt(f"mount {options.decode()}", syscall, "mount", b"cgroup", b"/forge/scratch/c", b"cgroup", 0, options)
attempt("mount v2", syscall, "mount", b"cgroup2", b"/forge/scratch/c", b"cgroup2", 0, 0)
attempt("in a user namespace", syscall, "unshare", 0x10000000 | 0x00020000 | 0x02000000)
for path in (
    "/sys/fs/cgroup/release_agent",
    "/sys/fs/cgroup/memory/release_agent",
    "/sys/fs/cgroup/cgroup.procs",
    "/forge/scratch/c/release_agent",
):
    attempt(path, os.open, path, os.O_WRONLY)
with open("/proc/self/mounts") as table:
    say(mounted=[line for line in table if line.split()[2].startswith("cgroup")])
with contextlib.suppress(OSError), open("/proc/self/cgroup") as groups:
    say(groups=sorted({line.strip().split(":")[2] for line in groups}))
done()
