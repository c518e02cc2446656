"""Another attempt, with a larger limit, of what ended because a limit was too small for it: only where an analysis asks for that."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.inputs import SNAPSHOT
from forge_orchestration.executions.upstream import EXECUTION
from forge_orchestration.executors.feed import Listener
from forge_orchestration.model.limits import Limits, limits_as_written
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec

_LIMIT_OF = {EndReason.MEMORY: ("memory", "memory_bytes"), EndReason.WALL_TIME: ("wall_time", "wall_time_s")}


def repeated(spec: AnalysisSpec, record: ExecutionRecord) -> AnalysisSpec:
    """The request to do once more what `record` tells of: with its limits, and the very outputs of others and snapshots that it had read."""
    read = {
        one.name: one.source for one in record.inputs if one.source.startswith((EXECUTION, SNAPSHOT)) and one.name in spec.inputs
    }
    return msgspec.structs.replace(
        spec, attempt=record.attempt + 1, previous_execution_id=record.execution_id, limits=record.limits, chosen_by=record.chosen_by,
        inputs={**spec.inputs, **read},
    )  # fmt: skip


def next_attempt(spec: AnalysisSpec, record: ExecutionRecord, maximum: Limits) -> tuple[AnalysisSpec, str] | None:
    """The request to try it again, and a sentence that says so; None if nothing speaks for it.

    Args:
        spec: What was asked for first.
        record: How its latest attempt ended.
        maximum: What the deployment allows: a limit grows to that, and a limit that is there already is not tried again.
    """
    retry = spec.retry_with_more
    if record.end_reason not in _LIMIT_OF or record.attempt >= retry.attempts:
        return None
    key, field = _LIMIT_OF[record.end_reason]
    had = getattr(record.limits, field)
    wanted = min(type(had)(had * retry.factor), getattr(maximum, field))
    if wanted <= had:
        return None
    again = repeated(spec, record)
    limits = msgspec.structs.replace(again.limits, **{field: wanted})
    before, after = limits_as_written(record.limits)[key], limits_as_written(limits)[key]
    chosen_by = {**again.chosen_by, key: f"retry with more: {before} was too little"}
    return (
        msgspec.structs.replace(again, limits=limits, chosen_by=chosen_by),
        f"It is tried again with a {key} limit of {after} instead of {before}, attempt {record.attempt + 1} of {retry.attempts}.",
    )


def run_with_more(
    engine: Engine, spec: AnalysisSpec, *, listener: Listener | None = None, cancel: threading.Event | None = None,
    wait_for_room: bool = True, told: Callable[[ExecutionRecord, str], None] = lambda record, sentence: None,
) -> ExecutionRecord:  # fmt: skip
    """Run an analysis until an attempt ends for another reason than its limits, or none is left; returns the record of the last.

    Args:
        told: Called between two attempts, with the record of the one before and a sentence.

    Raises:
        ForgeError: Nothing was started at all.
    """
    record = engine.run(spec, listener=listener, cancel=cancel, wait_for_room=wait_for_room)
    while not (cancel is not None and cancel.is_set()):
        found = next_attempt(spec, record, engine.settings.maximum)
        if found is None:
            break
        told(record, found[1])
        try:
            record = engine.run(found[0], listener=listener, cancel=cancel, wait_for_room=wait_for_room)
        except ForgeError as error:  # what ended has ended all the same
            told(record, f"It could not be: {error}")
            break
    return record
