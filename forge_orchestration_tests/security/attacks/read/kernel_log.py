"""Reads the kernel's log, which names addresses, devices and other people's programs; and tries to clear it."""

import ctypes

from evidence import attempt, done, read, syscall

READ, READ_ALL, READ_CLEAR, CLEAR, SIZE_UNREAD = 2, 3, 4, 5, 9
buffer = ctypes.create_string_buffer(4096)
for name, action in {
    "READ": READ,
    "READ_ALL": READ_ALL,
    "READ_CLEAR": READ_CLEAR,
    "CLEAR": CLEAR,
    "SIZE_UNREAD": SIZE_UNREAD,
}.items():
    attempt(f"syslog {name}", syscall, "syslog", action, buffer, len(buffer))
for path in ("/dev/kmsg", "/proc/kmsg", "/var/log/dmesg"):
    attempt(path, read, path)
done()
