"""An execution as a Dagster run sees it while it goes on: messages as log events, output in the step's captured logs.

Everything here comes from an untrusted program, and every event costs a write to Dagster's database while the engine
waits for this thread. So text is made harmless, and all of it is capped: what is left out is in the execution's folder.
"""

import codecs
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from forge_orchestration.executions.messages import printable
from forge_orchestration.model.messages import Message
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.operations.workers import RUN_WORKER
from forge_orchestration.orchestration.captured_logs import CapturedLogs
from forge_orchestration.units import format_bytes

MAX_EVENTS = 500
MAX_EVENT_CHARS = 4000
MAX_STREAM_BYTES = 8 * 2**20
PROGRESS_EVERY_S = 1.0
PROGRESS_SHARE = 1 / 300  # of the time that has passed: after five minutes a second becomes longer


class _Stream:
    """Copies one stream to this process' own, which is a terminal's, or what Dagster captures of a step that has a process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._left = MAX_STREAM_BYTES
        self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("backslashreplace"), True)

    def write(self, data: bytes) -> None:
        """Copy `data`, which may end in the middle of a character; no byte of it can steer a terminal."""
        if self._left < 0:
            return
        kept = data[: self._left]
        self._left -= len(data)
        self._put(printable(self._decoder.decode(kept)))
        if self._left < 0:
            self._put(f"\n[the first {format_bytes(MAX_STREAM_BYTES)} are shown here; the log of the execution has more]\n")

    def close(self) -> None:
        """Write what is left of a character that was never completed."""
        self._put(printable(self._decoder.decode(b"", final=True)))

    def _put(self, text: str) -> None:
        stream = getattr(sys, self._name)  # looked up each time: it is Dagster's to replace
        try:
            encoding = stream.encoding or "utf-8"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
        except OSError:  # the disk under Dagster's logs is full: no reason to end an analysis
            self._left = -1


class RunLog:
    """An engine's listener for one step.

    Args:
        log: The step's log.
        captured: Where Dagster shows the execution's own log files; None if it captures this process' output instead.
        clock: Seconds, for the pace of progress.
    """

    def __init__(
        self, log: dg.DagsterLogManager, captured: CapturedLogs | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._captured = captured
        self._clock = clock
        self._began = clock()
        self._events = self._left_out = 0
        self._shown_at = float("-inf")
        self._told_of = self._told_why = ""
        self._waiting: Message | None = None
        # what a run's worker prints itself is nobody's to read: its steps' logs are shown already
        mirrored = captured is None or RUN_WORKER not in os.environ
        self._streams = {name: _Stream(name) for name in ("stdout", "stderr")} if mirrored else {}

    def on_started(self, record: ExecutionRecord) -> None:
        """Say where everything will be, before anything can go wrong."""
        if record.execution_id != self._told_of:
            self._told_of = record.execution_id
            self._log.info(f"Execution {record.execution_id} of {record.analysis}: its logs and record are in {record.folder}.")
        if record.message and (record.status == "queued" or record.cache.hit):
            self._log.info(record.message)
        if record.cache.why and record.cache.why != self._told_why:
            self._told_why = record.cache.why
            self._log.warning(record.cache.why)
        self.show_logs(record)

    def show_logs(self, record: ExecutionRecord) -> None:
        """Have Dagster show the execution's log files as the step's."""
        if self._captured is not None:
            for name, log in record.logs.items():
                self._captured.show(name, Path(log.path))

    def on_log(self, stream: str, data: bytes) -> None:
        """Copy new output."""
        if self._captured is not None:
            self._captured.refresh()
        if (copy := self._streams.get(stream)) is not None:
            copy.write(data)

    def on_message(self, message: Message) -> None:
        """Log what an analysis says; of progress, no more than a person can read."""
        if message.type == "progress":
            now = self._clock()
            self._waiting = message
            if now - self._shown_at >= max(PROGRESS_EVERY_S, (now - self._began) * PROGRESS_SHARE):
                self._show_progress(now)
        elif message.type == "log":
            self._show(message.level, message.message)
        elif message.type == "metadata":
            values = ", ".join(f"{name} = {value}" for name, value in message.values.items())
            self._show("info", f"The analysis states {values}")
        elif message.type == "check":
            said = f": {message.message}" if message.message else "."
            self._show("info", f"The analysis reports that check {message.name} {'passed' if message.passed else 'failed'}{said}")

    def finish(self) -> None:
        """The execution has ended: show the last progress, the ends of the streams, and how much was left out."""
        if self._waiting is not None:
            self._show_progress(self._clock())
        for stream in self._streams.values():
            stream.close()
        if self._left_out:
            self._log.warning(f"{self._left_out} further messages of the analysis are not shown here.")

    def _show_progress(self, now: float) -> None:
        message, self._waiting = self._waiting, None
        assert message is not None
        share = "" if message.fraction is None else f"{message.fraction:.0%} "
        self._shown_at = now
        self._log.info(f"Progress: {share}{message.message}".rstrip()[:MAX_EVENT_CHARS])

    def _show(self, level: str, text: str) -> None:
        if self._events < MAX_EVENTS:
            self._events += 1
            self._log.log(level.upper(), text[:MAX_EVENT_CHARS])
        else:
            if not self._left_out:
                self._log.warning(f"The analysis has sent {MAX_EVENTS} messages; what follows is not shown here.")
            self._left_out += 1
