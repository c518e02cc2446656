"""Opens the host's disks, by the names that the kernel tells and through device nodes of its own."""

import os
import stat

from evidence import attempt, done, read

with open("/proc/partitions") as table:
    disks = [line.split() for line in table if len(line.split()) == 4 and line.split()[0].isdigit()]
for major, minor, _, name in [*disks[:12], ("7", "0", "", "loop0"), ("8", "0", "", "sda"), ("254", "0", "", "vda")]:
    attempt(f"open {name}", read, f"/dev/{name}")
    attempt(f"mknod {name}", os.mknod, f"/forge/scratch/{name}", stat.S_IFBLK | 0o666, os.makedev(int(major), int(minor)))
done()
