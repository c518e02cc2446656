"""Makes hard links to what it must not change, into the folders that it may change.

From: a hard link carries the file's owner and mode into another folder, past every rule that looks at paths.
"""

import ctypes
import os

from evidence import LIBC, attempt, done

AT_FDCWD, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = -100, 0x400, 0x1000


def linkat(source_fd, source, target, flags):
    ctypes.set_errno(0)
    if LIBC.linkat(source_fd, source.encode(), AT_FDCWD, target.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), "")


for number, path in enumerate(
    (
        "/forge/inputs/data",
        "/forge/inputs/folder/inner.txt",
        "/usr/bin/env",
        "/forge/messages",
        "/forge/params.json",
        "/etc/passwd",
        "/dev/null",
    )
):
    fd = os.open(path, os.O_PATH)
    for folder in ("/forge/scratch", "/forge/outputs", "/tmp", "/dev/shm"):
        attempt(f"{path} to {folder}", os.link, path, f"{folder}/link{number}")
        attempt(f"{path} to {folder} by descriptor", linkat, fd, "", f"{folder}/fd{number}", AT_EMPTY_PATH)
        attempt(
            f"{path} to {folder} by /proc", linkat, AT_FDCWD, f"/proc/self/fd/{fd}", f"{folder}/proc{number}", AT_SYMLINK_FOLLOW
        )
done()
