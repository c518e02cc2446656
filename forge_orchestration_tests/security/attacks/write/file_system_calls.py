"""Asks the file systems beneath it for what only their owner may ask: frozen, shut down, made unremovable.

From: a scratch folder that is frozen or has immutable files cannot be cleaned up.
"""

import fcntl
import os
import struct

from evidence import attempt, done

IMMUTABLE, APPEND_ONLY = 0x10, 0x20
open("/forge/scratch/file", "w").close()
for path in ("/forge/scratch", "/forge/scratch/file", "/forge/outputs"):
    fd = os.open(path, os.O_RDONLY)
    for name, request, argument in (
        ("immutable", 0x40086602, struct.pack("l", IMMUTABLE)),
        ("append only", 0x40086602, struct.pack("l", APPEND_ONLY)),
        ("freeze", 0xC0045877, struct.pack("i", 0)),
        ("thaw", 0xC0045878, struct.pack("i", 0)),
        ("trim", 0xC0185879, struct.pack("QQQ", 0, 1 << 30, 0)),
        ("shut down", 0x8004587D, struct.pack("I", 0)),
        ("resize", 0x40086610, struct.pack("Q", 1 << 40)),
        ("label", 0x41009432, b"harm".ljust(256, b"\0")),
    ):
        attempt(f"{name} {path}", fcntl.ioctl, fd, request, argument)
done()
