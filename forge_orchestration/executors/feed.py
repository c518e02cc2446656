"""What an execution says while it runs, passed on to who listens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from forge_orchestration.executors.base import AnalysisExecutor, ExecutionHandle
from forge_orchestration.model.messages import Message
from forge_orchestration.model.record import ExecutionRecord


class Listener(Protocol):
    """Who wants to see an execution while it runs. Called from the thread that called `Engine.run`."""

    def on_started(self, record: ExecutionRecord) -> None:
        """The execution has its id and its folder. If it is `queued` and has a message, that says what for.

        If it is final, nothing is run: it has taken an earlier result, and that is all that will be heard of it. Of one that has waited
        this is said again when it has waited long enough.
        """

    def on_log(self, stream: str, data: bytes) -> None:
        """New bytes of `stdout` or `stderr`, untrusted."""

    def on_message(self, message: Message) -> None:
        """A validated message of the analysis."""


class Feed:
    """Passes what an execution says to a listener, each byte and message once."""

    def __init__(self, executor: AnalysisExecutor, handle: ExecutionHandle, listener: Listener | None, passed_before: bool) -> None:
        self._executor, self._handle, self._listener = executor, handle, listener
        self._offsets = dict.fromkeys(("messages", "stdout", "stderr"), 0)
        if passed_before:  # the supervisor writes a message as one whole line
            for _ in self._new("messages"):
                pass
        self._rest = b""

    def pass_on(self) -> None:
        """Whatever is new."""
        if self._listener is None:
            return
        for stream in self._offsets:
            for data in self._new(stream):
                if stream == "messages":
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    for line in lines:
                        self._listener.on_message(msgspec.json.decode(line, type=Message))
                else:
                    self._listener.on_log(stream, data)

    def _new(self, stream: str) -> Iterator[bytes]:
        """In pieces: a flood of output is never held as a whole."""
        while data := self._executor.logs(self._handle, stream, self._offsets[stream]):
            self._offsets[stream] += len(data)
            yield data
