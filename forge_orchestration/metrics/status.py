"""The Quest view's data: how this deployment is, now and in the last 24 hours.

`python -m forge_orchestration.metrics.status` writes its JSON Schema to `docs/quest-status.schema.json`.
Texts may hold whatever an analysis wrote: whoever shows them shows them as text.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import closing
from typing import Any, Literal

import msgspec

from forge_orchestration import __version__
from forge_orchestration.executions import statistics
from forge_orchestration.executions.store import Store
from forge_orchestration.health import last
from forge_orchestration.health.last import LastResult, Tier
from forge_orchestration.metrics import present
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.reasons import Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.schema import schema_of, write_schema
from forge_orchestration.runtimes.catalog import RuntimeState
from forge_orchestration.settings import Settings, make_home

MOST_LISTED = 20
_DAY_S = 86_400.0
Overall = Literal["healthy", "warnings", "unhealthy", "unknown"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check as it last was; times are seconds since the epoch."""

    target: str
    name: str
    passed: bool
    severity: Literal["error", "warning"]
    corruption: bool
    finding: str
    remedy: str
    tier: Tier
    checked_at: float
    since: float


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`overall`: the worst that a check found; `unknown` if none has looked. `oldest_at`: the check that looked longest ago."""

    overall: Overall
    errors: int
    warnings: int
    oldest_at: float | None
    checks: list[Check]


class RuntimeHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime: its state now, what is wrong, and when its checks last looked."""

    name: str
    state: RuntimeState
    findings: list[str]
    checked_at: float | None


class Active(msgspec.Struct, frozen=True, kw_only=True):
    """One execution that has not ended. `message` says what a queued one waits for."""

    execution_id: str
    analysis: str
    runtime: str
    status: Status
    message: str
    queued_at: float
    started_at: float | None


class Actives(msgspec.Struct, frozen=True, kw_only=True):
    """How many there are, and the first of them."""

    count: int
    first: list[Active]


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """The executions that ended in the last 24 hours.

    Attributes:
        success_rate: Of those that succeeded, failed or were lost: the part that succeeded; null if there were none.
    """

    ended: int
    by_status: dict[str, int]
    by_end_reason: dict[str, int]
    suspect: int
    success_rate: float | None


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """What the executions that run may use of one resource, and what all may; null: not counted."""

    claimed: float
    capacity: float | None


class IsolationNow(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the newest execution did without a protection, and which."""

    degraded: bool
    protections_off: list[str]


@compiled
class QuestStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a deployment is. Fields may be added; those that are there keep their meaning."""

    schema_version: int = 1
    generated_at: float
    forge_version: str
    host: str
    health: Health
    runtimes: list[RuntimeHealth]
    running: Actives
    queued: Actives
    capacity: dict[str, Claimed]
    last_failures: list[statistics.FailedExecution]
    last_24h: Day
    corruption: list[Check]
    isolation: IsolationNow


def quest_status(settings: Settings) -> QuestStatus:
    """How the deployment is now.

    Raises:
        ForgeError: The store or the catalog cannot be read.
    """
    make_home(settings)
    now = time.time()
    results = last.read(settings)
    checks = [_check(one) for one in results]
    with closing(Store(settings.store_path)) as store:
        active = present.active(store, settings)
        failures = statistics.last_failures(store, MOST_LISTED)
        day = _day(statistics.ended(store, now - _DAY_S))
        off = statistics.protections_off(store)
    return QuestStatus(
        generated_at=now, forge_version=__version__, host=os.uname().nodename, health=_health(checks),
        runtimes=[_runtime(one, checks) for one in present.runtimes(settings)],
        running=_actives([record for record in active if record.status is not Status.QUEUED]),
        queued=_actives([record for record in active if record.status is Status.QUEUED]),
        capacity={name: Claimed(claimed=one.claimed, capacity=one.capacity) for name, one in present.shares(settings).items()},
        last_failures=failures, last_24h=day,
        corruption=[check for check in checks if check.corruption], isolation=IsolationNow(degraded=bool(off), protections_off=off),
    )  # fmt: skip


def _check(one: LastResult) -> Check:
    return Check(**msgspec.structs.asdict(one.result), tier=one.tier, checked_at=one.checked_at, since=one.since)


def _health(checks: list[Check]) -> Health:
    found = Counter(check.severity for check in checks if not check.passed)
    errors, warnings = found["error"], found["warning"]
    overall: Overall = "unhealthy" if errors else "warnings" if warnings else "healthy" if checks else "unknown"
    oldest = min((check.checked_at for check in checks), default=None)
    return Health(overall=overall, errors=errors, warnings=warnings, oldest_at=oldest, checks=checks)


def _runtime(one: present.RuntimeNow, checks: list[Check]) -> RuntimeHealth:
    looked = max((check.checked_at for check in checks if check.target == one.name), default=None)
    return RuntimeHealth(name=one.name, state=one.state, findings=one.findings, checked_at=looked)


def _actives(records: list[ExecutionRecord]) -> Actives:
    return Actives(
        count=len(records),
        first=[
            Active(
                execution_id=record.execution_id, analysis=record.analysis, runtime=record.runtime.name if record.runtime else "",
                status=record.status, message=record.message, queued_at=record.queued_at, started_at=record.started_at,
            )
            for record in records[:MOST_LISTED]
        ],
    )  # fmt: skip


def _day(ended: list[statistics.Ended]) -> Day:
    by_status: Counter[str] = Counter()
    by_reason: Counter[str] = Counter()
    for one in ended:
        by_status[one.status] += one.number
        by_reason[one.end_reason] += one.number
    judged = sum(by_status[status] for status in (Status.SUCCEEDED, Status.FAILED, Status.LOST))
    return Day(
        ended=by_status.total(), by_status=dict(by_status), by_end_reason=dict(by_reason), suspect=sum(one.suspect for one in ended),
        success_rate=by_status[Status.SUCCEEDED] / judged if judged else None,
    )  # fmt: skip


def status_schema() -> dict[str, Any]:
    """The schema of what `quest_status` gives, as JSON."""
    return schema_of(QuestStatus)


if __name__ == "__main__":
    write_schema("quest-status", status_schema())
