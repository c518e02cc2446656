"""What the store's index says of all executions together. Everything is added up by SQLite: no record is opened.

Executions that have ended and were removed since are counted too. Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from forge_orchestration.executions.rows import COLUMNS
from forge_orchestration.executions.store import Store
from forge_orchestration.model.reasons import Status

Grouped = Literal["analysis", "runtime"]
_FINAL = ", ".join(f"'{status}'" for status in Status if status.is_final)
_FAILURES = f"'{Status.FAILED}', '{Status.LOST}', '{Status.REFUSED}'"
# what is spread over buckets → how it is had from a row; NULL where it was not measured, or nothing limited it
_SPREAD = {
    "wall_s": "wall_s",
    "queue_s": "MAX(0, started_at - queued_at)",
    "memory_use": "peak_memory_bytes / NULLIF(memory_limit_bytes, 0)",
    "cpu_use": "cpu_s / NULLIF(wall_s * cpus_limit, 0)",
    "scratch_use": "peak_scratch_bytes / NULLIF(scratch_limit_bytes, 0)",
}
Spread = Literal["wall_s", "queue_s", "memory_use", "cpu_use", "scratch_use"]


class Ended(NamedTuple):
    """How many executions ended in one way, and how many of these were suspect."""

    analysis: str
    runtime: str
    executor: str
    status: str
    end_reason: str
    number: int
    suspect: int


class Distribution(NamedTuple):
    """One value of all executions that have it: how many are at most each bound, how many there are, and their sum."""

    group: tuple[str, ...]
    at_most: tuple[int, ...]
    number: int
    sum: float


class FailedExecution(msgspec.Struct, frozen=True, kw_only=True):
    """One execution that failed, was lost or was refused, with its sentence."""

    execution_id: str
    analysis: str
    runtime: str
    status: str
    end_reason: str
    message: str
    ended_at: float | None


def ended(store: Store, since: float | None = None) -> list[Ended]:
    """How executions ended; with `since`, those that ended then or later."""
    when, values = ("", ()) if since is None else ("AND ended_at >= ?", (since,))
    query = f"""SELECT analysis, COALESCE(runtime, ''), executor, status, COALESCE(end_reason, ''), COUNT(*), COALESCE(SUM(suspect), 0)
        FROM executions WHERE status IN ({_FINAL}) {when} GROUP BY 1, 2, 3, 4, 5"""
    return [Ended(*row) for row in store.read(query, values)]


def distribution(store: Store, value: Spread, bounds: Sequence[float], by: Sequence[Grouped]) -> list[Distribution]:
    """How a value of ended executions is spread, for each group.

    Args:
        bounds: Upper bounds of the buckets, each counted with all below it.
        by: Columns that make a group.
    """
    columns = ", ".join(f"COALESCE({column}, '') AS {column}" for column in by)
    numbers = ", ".join(str(number) for number in range(1, len(by) + 1))
    buckets = ", ".join(f"SUM(value <= {float(bound)!r})" for bound in bounds)
    query = f"""SELECT {", ".join(by)}, {buckets}, COUNT(*), SUM(value)
        FROM (SELECT {columns}, {_SPREAD[value]} AS value FROM executions WHERE status IN ({_FINAL}))
        WHERE value IS NOT NULL GROUP BY {numbers}"""
    width = len(by)
    return [Distribution(row[:width], row[width:-2], row[-2], row[-1]) for row in store.read(query)]


def first_values(store: Store, column: Grouped, most: int) -> list[str]:
    """The first `most` values that a column ever had: the same ones for as long as the store lives."""
    query = f"SELECT {column} FROM executions WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY MIN(execution_id) LIMIT ?"
    return [str(row[0]) for row in store.read(query, (most,))]


def last_failures(store: Store, most: int) -> list[FailedExecution]:
    """The newest executions that failed, were lost or were refused, the newest first."""
    query = f"""SELECT execution_id, analysis, COALESCE(runtime, ''), status, COALESCE(end_reason, ''), message, ended_at
        FROM executions WHERE status IN ({_FAILURES}) AND removed = 0 ORDER BY ended_at DESC, execution_id DESC LIMIT ?"""
    return [FailedExecution(**dict(zip(FailedExecution.__struct_fields__, row, strict=True))) for row in store.read(query, (most,))]


def protections_off(store: Store) -> list[str]:
    """Names of the protections that the newest execution that ran did without."""
    query = "SELECT protections_off FROM executions WHERE protections_off IS NOT NULL ORDER BY execution_id DESC LIMIT 1"
    found = store.read(query)
    return str(found[0][0]).split() if found else []


def rows(store: Store, analysis: str | None, since: float) -> list[dict[str, object]]:
    """The whole rows of executions that were asked for at `since` or later and are still there, the oldest first."""
    query = f"SELECT {', '.join(COLUMNS)} FROM executions WHERE removed = 0 AND queued_at >= ?"
    values: list[object] = [since]
    if analysis is not None:
        query += " AND analysis = ?"
        values.append(analysis)
    return [dict(zip(COLUMNS, row, strict=True)) for row in store.read(f"{query} ORDER BY execution_id", values)]
