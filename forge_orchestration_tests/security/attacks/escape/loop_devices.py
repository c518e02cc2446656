"""Attaches a file of its own as a disk, to mount a file system that it has made."""

import os
import stat

from evidence import attempt, done, ioctl

attempt("control", os.open, "/dev/loop-control", os.O_RDWR)
for number in range(4):
    attempt(f"loop{number}", os.open, f"/dev/loop{number}", os.O_RDWR)
attempt("own control", os.mknod, "/forge/scratch/control", stat.S_IFCHR | 0o666, os.makedev(10, 237))
attempt("own device", os.mknod, "/forge/scratch/loop", stat.S_IFBLK | 0o666, os.makedev(7, 0))
attempt("own device mapper", os.mknod, "/forge/scratch/mapper", stat.S_IFCHR | 0o666, os.makedev(10, 236))
attempt("of a regular file", ioctl, "/forge/params.json", 0x4C82)
attempt("network block device", os.open, "/dev/nbd0", os.O_RDWR)
done()
