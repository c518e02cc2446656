"""Which executions ran at a certain time, by the store and, for those that have not ended there, by their records."""

from __future__ import annotations

import contextlib
from pathlib import Path

from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store


def ran_meanwhile(store: Store, executions_dir: Path, since: float, until: float, but: str) -> list[str]:
    """Ids of the executions of this deployment that ran between two moments (seconds since the epoch), but one.

    Raises:
        StoreError: The store cannot be read.
    """
    found = []
    for execution_id, started_at, ended_at in store.may_have_run(since, until):
        if ended_at is None:
            with contextlib.suppress(ForgeError):  # one that is being made has no record yet
                record = ExecutionFolder(executions_dir, execution_id).read_record()
                started_at, ended_at = record.started_at, record.ended_at
        if execution_id != but and started_at is not None and started_at <= until and (ended_at is None or ended_at >= since):
            found.append(execution_id)
    return found
