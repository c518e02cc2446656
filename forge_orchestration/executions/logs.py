"""Log files: capped while they are written, followed while they grow."""

from __future__ import annotations

import os
from pathlib import Path

from forge_orchestration.model.record import LogFacts

_MOST_TAIL_BYTES = 1 << 20
_CHUNK = 1 << 16


class CappedLog:
    """Keeps `limit_bytes` of a stream, its beginning and its end, and counts the rest, which costs the writer nothing but the write.

    The end, at most half of it and at most 1 MiB, is in memory until `close` writes it, after a line that says how much is left
    out: whoever follows the file sees it grow, and never change.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._tail_bytes = min(limit_bytes // 2, _MOST_TAIL_BYTES)
        self._left = limit_bytes - self._tail_bytes
        self._tail = bytearray()
        self._kept = self._dropped = 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Keep what fits.

        Raises:
            OSError: The disk is full, or the like.
        """
        kept = data[: self._left]
        self._left -= len(kept)
        self._append(kept)
        if rest := data[len(kept) :]:
            self._tail += rest
            if len(self._tail) > 2 * self._tail_bytes + _CHUNK:  # seldom: what is behind has to be moved
                surplus = len(self._tail) - self._tail_bytes
                self._dropped += surplus
                del self._tail[:surplus]

    def facts(self) -> LogFacts:
        """What the record says of it."""
        return LogFacts(path=str(self._path), bytes=self._kept, truncated_bytes=self._dropped)

    def close(self) -> None:
        """Write the end of the stream, if it is not there yet, and close the file.

        Raises:
            OSError: The disk is full, or the like; the file is closed all the same.
        """
        try:
            surplus = max(0, len(self._tail) - self._tail_bytes)
            self._dropped += surplus
            if self._dropped:
                note = b"\n[forge: %d bytes are left out here]\n" % self._dropped
                self._append(note)
                self._kept -= len(note)
            self._append(bytes(self._tail[surplus:]))
            self._tail.clear()
        finally:
            os.close(self._fd)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._kept += written
            view = view[written:]


class LogFollower:
    """Reads what has been added to a file since the last look, from a file that may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_bytes(self) -> bytes:
        """All that was added since the last call."""
        try:
            with open(self._path, "rb", buffering=0) as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return b""
        self._offset += len(data)
        return data


def tail(path: Path, max_bytes: int = 4096) -> bytes:
    """The end of a log, from a line's beginning where there is one."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            data = file.read(max_bytes)
    except FileNotFoundError:
        return b""
    return data if size <= max_bytes or b"\n" not in data else data.split(b"\n", 1)[1]
