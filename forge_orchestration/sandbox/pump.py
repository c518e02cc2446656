"""What a sandbox says, taken to where it is kept: capped logs, and messages that are checked one by one."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from forge_orchestration.executions.logs import CappedLog
from forge_orchestration.executions.messages import MessageParser, MessageViolation
from forge_orchestration.model.messages import Message
from forge_orchestration.model.record import CheckFacts


class Pump:
    """Takes what the sandbox says to where it is kept."""

    def __init__(self, logs: dict[str, CappedLog], parser: MessageParser, messages: Path) -> None:
        self._logs = logs
        self._parser = parser
        self._messages_path = messages
        self._file: int | None = None
        self._broken = False
        self.metadata: dict[str, object] = {}
        self.checks: list[CheckFacts] = []

    @property
    def unreported(self) -> list[str]:
        """Declared checks of which the analysis said nothing."""
        return self._parser.unreported

    def take(self, source: str, data: bytes) -> None:
        """Bytes of `stdout`, `stderr` or `messages`.

        Raises:
            MessageViolation: At the first message that breaks the rules; later ones are dropped.
        """
        if source != "messages":
            self._logs[source].write(data)
        elif not self._broken:
            try:
                messages = self._parser.feed(data)
            except MessageViolation:
                self._broken = True
                raise
            for message in messages:
                if message.type == "check":
                    self.checks.append(_check_facts(message))
                else:
                    self.metadata.update(message.values if len(self.metadata) < 1000 else {})
                self._append(msgspec.json.encode(message) + b"\n")

    def finish(self) -> None:
        """Nothing more comes.

        Raises:
            MessageViolation: The channel ended badly.
        """
        if self._file is not None:
            os.close(self._file)
        for log in self._logs.values():
            log.close()
        if not self._broken:
            self._parser.finish()

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._file = os.open(self._messages_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(self._file, line)


def _check_facts(message: Message) -> CheckFacts:
    return CheckFacts(
        name=message.name, passed=bool(message.passed), severity="warning" if message.level == "warning" else "error",
        message=message.message, values=dict(message.values),
    )  # fmt: skip
