"""Mounts with the newer calls, which hold no mount in their name, and which a filter made before them does not know.

From: CVE-2022-0185, a hole in `fsconfig` through which containers were left.
"""

import os
import struct

from evidence import attempt, done, syscall

CLONE, RECURSIVE, EMPTY_PATH = 1, 0x8000, 0x1000
context = attempt("fsopen", syscall, "fsopen", b"tmpfs", 0)
attempt("fsconfig", syscall, "fsconfig", context or 0, 6, 0, 0, 0)
attempt("fsmount", syscall, "fsmount", context or 0, 0, 0)
attempt("fspick", syscall, "fspick", -100, b"/", 0)
attempt("open_tree", syscall, "open_tree", -100, b"/", CLONE | RECURSIVE)
attempt("open_tree_attr", syscall, "open_tree_attr", -100, b"/", CLONE, struct.pack("QQQQ", 0, 1, 0, 0), 32)
attempt("move_mount", syscall, "move_mount", os.open("/tmp", os.O_PATH), b"", -100, b"/forge/scratch", 4)
attempt("mount_setattr", syscall, "mount_setattr", -100, b"/forge/inputs/data", 0, struct.pack("QQQQ", 0, 1, 0, 0), 32)
done()
