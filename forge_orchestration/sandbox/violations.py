"""Counting what the system call filter refuses: each refused call waits at the listener until it is answered here.

A hostile program can ask without end, and every answer costs the supervisor a little processor time outside the program's own
limit. After a while the answers therefore come in small lots: a flood then only delays the program that makes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct

from forge_orchestration.sandbox import seccomp

_NOTIF_RECV, _NOTIF_SEND = 0xC0502100, 0xC0182101  # _IOWR('!', 0, 80 bytes), _IOWR('!', 1, 24 bytes)
_NOTIF_BYTES = 80
_LOT = 32
_FLOOD = 1000


class Violations:
    """Refused system calls of one execution, by name."""

    def __init__(self, listener: int) -> None:
        self.listener = listener
        self.counts: dict[str, int] = {}
        self._waiting = select.poll()
        self._waiting.register(listener, select.POLLIN)

    @property
    def total(self) -> int:
        """How many calls were refused until now."""
        return sum(self.counts.values())

    @property
    def is_flood(self) -> bool:
        """Whether so many have come that they are to be answered from time to time only."""
        return self.total > _FLOOD

    def answer(self) -> bool:
        """Count and refuse the calls that wait, at most a lot of them; False when none can come any more."""
        for _ in range(_LOT):
            events = self._waiting.poll(0)
            if not events:
                return True
            if not events[0][1] & select.POLLIN:
                return False  # the last process under the filter has ended
            call = bytearray(_NOTIF_BYTES)
            with contextlib.suppress(FileNotFoundError):  # its process was killed meanwhile
                fcntl.ioctl(self.listener, _NOTIF_RECV, call, True)
                number, _pid, _flags, call_number = struct.unpack_from("QIIi", call)
                name = seccomp.refused_names().get(call_number, str(call_number))
                self.counts[name] = self.counts.get(name, 0) + 1
                # struct seccomp_notif_resp: id, value, error, flags
                fcntl.ioctl(self.listener, _NOTIF_SEND, struct.pack("QqiI", number, 0, -errno.EPERM, 0))
        return True

    def close(self) -> None:
        """Nothing is counted any more; a call that still comes fails with ENOSYS."""
        os.close(self.listener)
