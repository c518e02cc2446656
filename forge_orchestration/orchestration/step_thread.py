"""What a step knows of the thread on which `sandboxed_executor` runs it. Under any other executor there is nothing to know."""

import threading
from contextvars import ContextVar
from dataclasses import dataclass

from forge_orchestration.orchestration.captured_logs import CapturedLogs


@dataclass(frozen=True)
class StepThread:
    """One step's thread.

    Attributes:
        cancel: Set when the run is interrupted: the step has to end.
        logs: Where Dagster shows what the step prints.
        resumed: Whether a process that was killed had started this step: an execution of it may still run, or have ended.
    """

    cancel: threading.Event
    logs: CapturedLogs
    resumed: bool


_of_this_thread: ContextVar[StepThread | None] = ContextVar("forge_step_thread", default=None)


def enter(thread: StepThread) -> None:
    """Make it the current one, for as long as the operating system's thread lives."""
    _of_this_thread.set(thread)


def current() -> StepThread | None:
    """The one that this code runs on; None if another executor runs the step."""
    return _of_this_thread.get()
