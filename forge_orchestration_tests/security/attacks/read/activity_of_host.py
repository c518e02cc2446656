"""Watches a file that it shares with the host, to learn when others open it: which program runs, which data is read.

From: inotify watches inodes, not mounts, and so sees through every namespace.
"""

import ctypes
import os
import select
import struct
import time

from evidence import LIBC, attempt, done, say

IN_OPEN, IN_ACCESS = 0x20, 0x1


def call(function, *arguments):
    ctypes.set_errno(0)
    if (result := function(*arguments)) < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


queue = attempt("inotify_init", call, LIBC.inotify_init1, os.O_NONBLOCK)
events = 0
if queue is not None:
    attempt("watch", call, LIBC.inotify_add_watch, queue, b"/forge/inputs/data", IN_OPEN | IN_ACCESS)
    say(watching=True)
    deadline = time.monotonic() + 2
    while not events and time.monotonic() < deadline:
        if select.select([queue], [], [], 0.1)[0]:
            data = os.read(queue, 4096)
            while data:
                (length,) = struct.unpack_from("I", data, 12)
                data, events = data[16 + length :], events + 1
say(events=events)
done()
