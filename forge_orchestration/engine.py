"""The one way in which an analysis is run: the CLI, Dagster and `forge_orchestration.run()` all come through here."""

from __future__ import annotations

import threading
from typing import Protocol

from forge_orchestration.model.messages import Message
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.settings import Settings


class Listener(Protocol):
    """Who wants to see an execution while it runs. Called from the thread that called `Engine.run`."""

    def on_started(self, record: ExecutionRecord) -> None:
        """The execution has its id and its folder."""

    def on_log(self, stream: str, data: bytes) -> None:
        """New bytes of `stdout` or `stderr`, untrusted."""

    def on_message(self, message: Message) -> None:
        """A validated message of the analysis."""


class Engine:
    """Runs analyses under one deployment's settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def run(
        self, spec: AnalysisSpec, *, listener: Listener | None = None, cancel: threading.Event | None = None
    ) -> ExecutionRecord:
        """Run one analysis to its end and return its final record.

        Raises:
            ForgeError: Nothing was started: the request, the host or the runtime is at fault.
        """
        raise NotImplementedError
