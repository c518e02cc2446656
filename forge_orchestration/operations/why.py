"""Why the next execution of an analysis would run, or would take an earlier result: which part has changed, from what to what."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import msgspec

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.upstream import analysis_of
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.operations.stages import with_outputs_of
from forge_orchestration.resume.changes import ChangedPart, changes_since, named
from forge_orchestration.resume.fingerprint import Fingerprint
from forge_orchestration.resume.results import find_result


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What the next execution would do.

    Attributes:
        would_run: Whether anything would be computed.
        sentence: That, and why.
        fingerprint: Of the next execution; empty if it is not known, because what it reads is not made yet.
        compared_with: Execution whose result would be taken, or the last one that `changes` are since; None if there is none.
    """

    would_run: bool
    sentence: str
    fingerprint: str
    compared_with: str | None = None
    changes: list[ChangedPart] = []


def explain(engine: Engine, spec: AnalysisSpec) -> Explanation:
    """Look at what there is; nothing is run.

    Raises:
        ForgeError: It could not be run at all.
    """
    wanted = engine.fingerprint(spec)
    found = find_result(wanted.digest, engine.store, engine.settings.executions_dir)
    if found.record is not None and spec.cache in ("use", "only"):
        when = _when(found.record)
        return Explanation(
            would_run=False, fingerprint=wanted.digest, compared_with=found.record.execution_id,
            sentence=f"It would not run: execution {found.record.execution_id}, of {when}, was made of the very same, and its"
            f" outputs are as they were.{_more(found.damage)}",
        )  # fmt: skip
    last = found.record or _last(engine, spec)
    changes = changes_since(last, wanted, engine.settings) if last is not None else []
    return Explanation(
        would_run=spec.cache != "only", fingerprint=wanted.digest, compared_with=last.execution_id if last is not None else None,
        changes=changes, sentence=_sentence(spec, wanted, found.damage, last, changes),
    )  # fmt: skip


def explain_stages(engine: Engine, specs: Sequence[AnalysisSpec]) -> list[Explanation]:
    """The same for each stage of an analysis, in their order: what reads a stage that would run would run too.

    Raises:
        ForgeError: It could not be run at all.
    """
    explanations: list[Explanation] = []
    running: set[str] = set()
    made: dict[str, ExecutionRecord] = {}
    for spec in specs:
        first = next((name for source in spec.inputs.values() if (name := analysis_of(source)) in running), None)
        if first is not None:
            sentence = f"It would run, because it reads what '{first}' makes, which would run."
            found = Explanation(would_run=True, sentence=sentence, fingerprint="")
        else:
            found = explain(engine, with_outputs_of(spec, made))
        if found.would_run or found.compared_with is None:
            running.add(spec.name)
        else:
            made[spec.name] = ExecutionFolder(engine.settings.executions_dir, found.compared_with).read_record()
        explanations.append(found)
    return explanations


def _last(engine: Engine, spec: AnalysisSpec) -> ExecutionRecord | None:
    """The latest execution of the analysis that has a result; if none has, the latest of all."""
    latest = None
    for execution_id in engine.store.latest_of(spec.name, spec.partition):
        with contextlib.suppress(ForgeError):
            record = ExecutionFolder(engine.settings.executions_dir, execution_id).read_record()
            if record.fingerprint is not None:
                if record.succeeded:
                    return record
                latest = latest or record
    return latest


def _sentence(
    spec: AnalysisSpec, wanted: Fingerprint, damage: str, last: ExecutionRecord | None, changes: list[ChangedPart]
) -> str:
    begin = "It would be refused, because nothing but an earlier result was asked for" if spec.cache == "only" else "It would run"
    if spec.cache in ("off", "refresh"):
        return f"{begin}, because the cache is '{spec.cache}'."
    if damage:
        return f"{begin}: {damage[:1].lower()}{damage[1:]}"
    if last is None:
        part = "" if spec.partition is None else f" for partition '{spec.partition}'"
        return f"{begin}: nothing is known of an earlier execution of '{spec.name}'{part}."
    if last.fingerprint == wanted.digest:
        if not last.succeeded:
            return f"{begin}: execution {last.execution_id}, of the very same, ended as {last.end_reason}."
        why = last.cache.why or f"it was run with the cache '{last.cache.policy}', and that keeps its result from being reused."
        return f"{begin}: of execution {last.execution_id}, of the very same, no result is reused: {why[:1].lower()}{why[1:]}"
    kind = "" if last.succeeded else f", which ended as {last.end_reason}"
    return f"{begin}: since execution {last.execution_id}, of {_when(last)}{kind}, this has changed: {named(changes)}."


def _more(sentence: str) -> str:
    return f" {sentence}" if sentence else ""


def _when(record: ExecutionRecord) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.ended_at or record.queued_at))
