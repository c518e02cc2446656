"""Mounts what would give it the host: file systems of the kernel, cgroups, other places, and the root writable again."""

import os

from evidence import attempt, done, syscall

BIND, REMOUNT, MOVE, PRIVATE = 4096, 32, 8192, 1 << 18
os.mkdir("/forge/scratch/m")
target = b"/forge/scratch/m"
for kind in (
    b"tmpfs",
    b"proc",
    b"sysfs",
    b"cgroup",
    b"cgroup2",
    b"devtmpfs",
    b"devpts",
    b"debugfs",
    b"tracefs",
    b"securityfs",
    b"mqueue",
    b"bpf",
    b"binfmt_misc",
    b"overlay",
    b"fuse",
    b"nfs",
    b"9p",
):
    attempt(f"mount {kind.decode()}", syscall, "mount", kind, target, kind, 0, 0)
attempt("bind /", syscall, "mount", b"/", target, 0, BIND, 0)
attempt("bind an input", syscall, "mount", b"/forge/inputs/data", b"/forge/params.json", 0, BIND, 0)
attempt("root writable", syscall, "mount", 0, b"/", 0, REMOUNT | BIND, 0)
attempt("inputs writable", syscall, "mount", 0, b"/forge/inputs/data", 0, REMOUNT | BIND, 0)
attempt("set-uid again", syscall, "mount", 0, b"/forge/scratch", 0, REMOUNT | BIND, 0)
attempt("move", syscall, "mount", b"/forge/scratch", target, 0, MOVE, 0)
attempt("propagation", syscall, "mount", 0, b"/", 0, PRIVATE, 0)
attempt("disk", syscall, "mount", b"/dev/vda", target, b"ext4", 1, 0)
attempt("unmount an input", syscall, "umount2", b"/forge/inputs/data", 2)
attempt("unmount the mask", syscall, "umount2", b"/proc/keys", 2)
attempt("unmount /tmp", syscall, "umount2", b"/tmp", 2)
done()
