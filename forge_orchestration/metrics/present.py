"""What is so at this moment: executions that have not ended, runtimes and their states, what is claimed of the capacity.

Records are opened for executions that have not ended, and for no others.
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import msgspec

from forge_orchestration.errors import ForgeError, HostError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.executors.admission import standing
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.runtimes import catalog
from forge_orchestration.settings import Settings


class Share(NamedTuple):
    """What the executions that run have claimed of one resource, and how much there is; None: not counted."""

    claimed: float
    capacity: float | None


class RuntimeNow(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime of the catalog: its state, and what is wrong with it."""

    name: str
    state: catalog.RuntimeState
    findings: list[str]


def active(store: Store, settings: Settings) -> list[ExecutionRecord]:
    """The executions that have not ended, in the order in which they came."""
    found = []
    for execution_id in sorted(store.unfinished()):
        with contextlib.suppress(ForgeError):  # one that is being made has no record yet
            record = ExecutionFolder(settings.executions_dir, execution_id).read_record()
            if not record.status.is_final:
                found.append(record)
    return found


def runtimes(settings: Settings) -> list[RuntimeNow]:
    """Every runtime that is defined, by the last quick look of anybody: none is made here but where there was none."""
    return [_runtime(name, settings) for name in catalog.runtime_names(settings)]


def _runtime(name: str, settings: Settings) -> RuntimeNow:
    try:
        state, findings = catalog.state(name, settings, max_age_s=math.inf)
    except ForgeError as error:
        return RuntimeNow(name=name, state="unhealthy", findings=[str(error)])
    return RuntimeNow(name=name, state=state, findings=findings)


def shares(settings: Settings) -> dict[str, Share]:
    """What is claimed of each resource: memory and scratch in bytes, processes, cores, and executions; empty if nobody knows."""
    try:
        capacity, book = standing(settings)
    except HostError:  # `forge doctor` tells
        return {}
    names = ("memory_bytes", "pids", "scratch_bytes", "cpus")
    found = {name: Share(sum(getattr(claim.limits, name) for claim in book.running), getattr(capacity, name)) for name in names}
    return found | {"executions": Share(len(book.running), capacity.executions)}
