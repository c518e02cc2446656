"""Mounts a file system of its own program, which could hang whoever looks at it."""

import os
import shutil
import stat
import subprocess

from evidence import attempt, done, say, syscall

attempt("device", os.open, "/dev/fuse", os.O_RDWR)
attempt("own device", os.mknod, "/forge/scratch/fuse", stat.S_IFCHR | 0o666, os.makedev(10, 229))
attempt("character device", os.open, "/dev/cuse", os.O_RDWR)
os.mkdir("/forge/scratch/mount")
attempt("mount", syscall, "mount", b"fuse", b"/forge/scratch/mount", b"fuse", 0, b"fd=0,rootmode=40000,user_id=0,group_id=0")
for helper in ("fusermount3", "fusermount"):
    if shutil.which(helper):
        tried = subprocess.run([helper, "/forge/scratch/mount"], capture_output=True, env={**os.environ, "_FUSE_COMMFD": "0"})
        say(helper=helper, status=tried.returncode, said=tried.stderr.decode()[:200])
with open("/proc/self/mounts") as table:
    say(mounted=[line for line in table if "fuse" in line])
done()
