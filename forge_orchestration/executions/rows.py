"""The row of a record in the store's index: made from `record.json` alone, so that one that is made again holds the same.

Limits are those that were read back where they are enforced: an execution that never came to run has none.
"""

from __future__ import annotations

from collections.abc import Callable

from forge_orchestration.model.record import ExecutionRecord, Isolation, Measured

# column → its type in SQLite, and what it holds
_FIRST: dict[str, tuple[str, Callable[[ExecutionRecord], object]]] = {
    "execution_id": ("TEXT PRIMARY KEY", lambda record: record.execution_id),
    "analysis": ("TEXT NOT NULL", lambda record: record.analysis),
    "runtime": ("TEXT", lambda record: record.runtime.name if record.runtime else None),
    "executor": ("TEXT NOT NULL", lambda record: record.executor),
    "status": ("TEXT NOT NULL", lambda record: record.status),
    "end_reason": ("TEXT", lambda record: record.end_reason),
    "message": ("TEXT NOT NULL", lambda record: record.message),
    "queued_at": ("REAL NOT NULL", lambda record: record.queued_at),
    "started_at": ("REAL", lambda record: record.started_at),
    "ended_at": ("REAL", lambda record: record.ended_at),
    "peak_memory_bytes": ("REAL", lambda record: _value(record.usage.peak_memory_bytes)),
    "cpu_s": ("REAL", lambda record: _sum(record.usage.cpu_user_s, record.usage.cpu_system_s)),
    "dagster_run_id": ("TEXT", lambda record: record.dagster_run_id),
}
_SECOND: dict[str, tuple[str, Callable[[ExecutionRecord], object]]] = {
    "attempt": ("INTEGER", lambda record: record.attempt),
    "host": ("TEXT", lambda record: record.host),
    "exit_code": ("INTEGER", lambda record: record.exit_code),
    "content_digest": ("TEXT", lambda record: record.runtime.content_digest if record.runtime else None),
    "wall_s": ("REAL", lambda record: _value(record.usage.wall_s)),
    "peak_pids": ("REAL", lambda record: _value(record.usage.peak_pids)),
    "peak_scratch_bytes": ("REAL", lambda record: _value(record.usage.peak_scratch_bytes)),
    "io_read_bytes": ("REAL", lambda record: _value(record.usage.io_read_bytes)),
    "io_write_bytes": ("REAL", lambda record: _value(record.usage.io_write_bytes)),
    "memory_limit_bytes": ("REAL", lambda record: _enforced(record, "memory_bytes")),
    "cpus_limit": ("REAL", lambda record: _enforced(record, "cpus")),
    "pids_limit": ("REAL", lambda record: _enforced(record, "pids")),
    "scratch_limit_bytes": ("REAL", lambda record: _enforced(record, "scratch_bytes")),
    "suspect": ("INTEGER", lambda record: int(record.suspect)),
    "protections_off": ("TEXT", lambda record: _protections_off(record.isolation)),
}
_THIRD: dict[str, tuple[str, Callable[[ExecutionRecord], object]]] = {"partition": ("TEXT", lambda record: record.partition)}
_FOURTH: dict[str, tuple[str, Callable[[ExecutionRecord], object]]] = {
    # of what others may reuse, and of what they may wait for until it has ended
    "fingerprint": ("TEXT", lambda record: record.fingerprint if _is_offered(record) else None),
}
_ALL = _FIRST | _SECOND | _THIRD | _FOURTH
COLUMNS = tuple(_ALL)
LISTED = (*_FIRST, *_THIRD)
"""What `forge executions list` shows."""
DEFINITIONS = tuple(f"{name} {kind}" for name, (kind, _) in _ALL.items())
SINCE_FIRST, SINCE_SECOND, SINCE_THIRD = (
    tuple(f"{name} {kind}" for name, (kind, _) in those.items()) for those in (_SECOND, _THIRD, _FOURTH)
)
"""What an index of the first schema lacks, beside that one of the second, and beside that one of the third."""


def row_of(record: ExecutionRecord) -> dict[str, object]:
    """Everything that the index holds of `record`, by column."""
    return {name: read(record) for name, (_, read) in _ALL.items()}


def _is_offered(record: ExecutionRecord) -> bool:
    return bool(record.cache.reusable) if record.status.is_final else record.cache.policy != "off"


def _value(measured: Measured | None) -> float | None:
    return measured.value if measured is not None else None


def _sum(*parts: Measured | None) -> float | None:
    values = [part.value for part in parts if part is not None]
    return sum(values) if values else None


def _enforced(record: ExecutionRecord, name: str) -> float | None:
    limit = record.enforced.get(name)
    return limit.value if limit is not None else None


def _protections_off(isolation: Isolation | None) -> str | None:
    """Names, separated by spaces; None if it is not known how the execution was isolated."""
    if isolation is None:
        return None
    return " ".join(sorted(name for name, state in isolation.protections.items() if not state.startswith("on")))
