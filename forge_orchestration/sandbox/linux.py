"""The few kernel calls for which Python has no function: mount, unshare, loop devices, process identity.

Nothing here knows of executions. Errors are `OSError` with the call's name.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
MS_NOSUID, MS_NODEV, MS_NOATIME, MS_REC, MS_PRIVATE = 2, 4, 1024, 16384, 1 << 18
_PR_SET_PDEATHSIG = 1
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4


def _check(result: int, call: str, *what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", *what[:1])


def unshare_mounts() -> None:
    """Give this process a mount namespace of its own: what it mounts is seen by it and its children, and ends with them."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")


def mount_ext4(device: str, target: Path) -> None:
    """Mount a scratch file system on `device` at `target`, without set-uid programs and devices.

    Nothing on it outlives a crash, so nothing waits for the disk (`barrier=0`), and its tables are not filled ahead of use.
    """
    flags = MS_NOSUID | MS_NODEV | MS_NOATIME
    options = b"barrier=0,noinit_itable"
    _check(_libc.mount(device.encode(), os.fsencode(target), b"ext4", flags, options), "mount", str(target))


def unmount(target: Path) -> None:
    """Unmount `target`."""
    _check(_libc.umount2(os.fsencode(target), 0), "umount", str(target))


def attach_loop_device(image_fd: int) -> tuple[str, int]:
    """Attach an open image to a free loop device that detaches itself when its last user is gone.

    Returns:
        The device's path and an open descriptor, which the caller closes once the device is mounted.
    """
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(200):  # another process may take the free one between the two calls
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            path = f"/dev/loop{number}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            # struct loop_config: fd, block size, struct loop_info64 (flags at offset 52), reserved
            info = bytearray(232)
            struct.pack_into("I", info, 52, _LO_FLAGS_AUTOCLEAR)
            config = struct.pack("II", image_fd, 0) + bytes(info) + bytes(64)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                return path, device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device after 200 tries")


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel to send `signal_number` to this process when its parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl")


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None if it is gone or a zombie.

    Together with the boot id it tells a process from a later one that got the same pid.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in b"ZX" else int(fields[19])


def sysctl(name: str) -> str | None:
    """The value of a kernel setting such as `kernel/unprivileged_userns_clone`; None if there is none."""
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return None
