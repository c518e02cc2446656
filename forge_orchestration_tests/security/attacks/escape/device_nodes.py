"""Opens the devices that lead to the host, and makes nodes for them wherever it can write."""

import os
import stat

from evidence import attempt, done

DEVICES = {
    "mem": (1, 1),
    "kmsg": (1, 11),
    "kvm": (10, 232),
    "tun": (10, 200),
    "fuse": (10, 229),
    "uinput": (10, 223),
    "vhost-vsock": (10, 241),
    "hwrng": (10, 183),
}
for name, (major, minor) in DEVICES.items():
    attempt(f"open {name}", os.open, f"/dev/{name}", os.O_RDWR)
    for folder in ("/forge/scratch", "/forge/outputs", "/tmp", "/dev/shm"):
        attempt(f"make {name} in {folder}", os.mknod, f"{folder}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
for path in (
    "/dev/net/tun",
    "/dev/vsock",
    "/dev/dri/card0",
    "/dev/nvidia0",
    "/dev/sg0",
    "/dev/watchdog",
    "/dev/btrfs-control",
    "/dev/autofs",
    "/dev/cpu_dma_latency",
):
    attempt(f"open {path}", os.open, path, os.O_RDWR)
done()
