"""Going on with what a process that was killed had begun: its execution still runs, or has ended, or is begun again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executors.feed import Listener
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.operations.reconcile import reconcile


def last_of_step(engine: Engine, dagster_run_id: str, dagster_step_key: str) -> ExecutionRecord | None:
    """The execution that was begun last for a step of a run, as its record is now; None if none was."""
    return next((one for one in _records_of_run(engine, dagster_run_id) if one.dagster_step_key == dagster_step_key), None)


def _records_of_run(engine: Engine, dagster_run_id: str) -> Iterator[ExecutionRecord]:
    """The latest first."""
    for execution_id in engine.store.executions_of_run(dagster_run_id):
        with contextlib.suppress(ForgeError):  # somebody removed its folder
            yield ExecutionFolder(engine.settings.executions_dir, execution_id).read_record()


def take_over(
    engine: Engine, record: ExecutionRecord, *, listener: Listener | None = None, cancel: threading.Event | None = None
) -> ExecutionRecord:
    """Bring an execution whose controller was killed to its end, and return its final record.

    One that runs is waited for; one that never came to run, or whose supervisor was killed too, is closed.
    """
    if not record.status.is_final and record.native_id is None:
        reconcile(engine)  # closes it, unless a supervisor has come to it after all
    return engine.follow(record.execution_id, listener=listener, cancel=cancel)


def cancel_run(engine: Engine, dagster_run_id: str) -> list[str]:
    """Ask everything that still runs for a Dagster run to end, with its grace; returns the ids."""
    asked = []
    for record in _records_of_run(engine, dagster_run_id):
        if not record.status.is_final:
            executor = engine.executor(record.executor)
            executor.cancel(executor.reattach(record.native_id or "", record.execution_id))
            asked.append(record.execution_id)
    return asked


def is_its_own_end(record: ExecutionRecord) -> bool:
    """Whether the analysis itself came to this end, or its limits brought it there: to begin again would come to the same."""
    return record.status in (Status.SUCCEEDED, Status.FAILED) and record.end_reason is not EndReason.EXECUTOR_ERROR
