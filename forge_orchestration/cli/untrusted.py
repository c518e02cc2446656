"""What an analysis printed, on its way to ours: as it is into a pipe or a file, harmless on a terminal."""

from __future__ import annotations

import codecs
from typing import TextIO

from forge_orchestration.executions.messages import printable


class UntrustedOutput:
    """Passes bytes on to one of our streams; a terminal gets nothing that moves its cursor or answers in its name."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: bytes) -> None:
        """Pass on `data`, which may end in the middle of a character."""
        self._out.flush()
        if self._out.isatty():
            data = printable(self._decoder.decode(data).replace("\r\n", "\n")).encode()
        self._out.buffer.write(data)
        self._out.buffer.flush()
