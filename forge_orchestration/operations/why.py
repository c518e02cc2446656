"""Why the next execution of an analysis would run, or would take an earlier result: which part has changed, from what to what."""

from __future__ import annotations

import contextlib
import time

import msgspec

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.resume.fingerprint import Fingerprint
from forge_orchestration.resume.results import find_result
from forge_orchestration.resume.system_view import SystemView, kept_view
from forge_orchestration.settings import Settings

_MOST_NAMED = 3


class ChangedPart(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a fingerprint that is another than it was; None where there is no such part."""

    part: str
    before: str | None
    now: str | None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What the next execution would do.

    Attributes:
        would_run: Whether anything would be computed.
        sentence: That, and why.
        fingerprint: Of the next execution.
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


def changes_since(record: ExecutionRecord, wanted: Fingerprint, settings: Settings) -> list[ChangedPart]:
    """The parts that are not what they were when `record` was made, by name."""
    before, now = record.fingerprint_parts, wanted.parts
    changes = []
    for part in sorted({*before, *now}):
        if before.get(part) != now.get(part):
            details = _packages(before.get(part), now.get(part), settings) if part == "system" else []
            changes += details or [ChangedPart(part=part, before=before.get(part), now=now.get(part))]
    return changes


def _packages(before: str | None, now: str | None, settings: Settings) -> list[ChangedPart]:
    """What has changed in the host's programs, one by one, where it is known what the digests stand for."""
    views = [kept_view(settings.cache_dir, digest) for digest in (before, now) if digest is not None]
    if len(views) != 2 or views[0] is None or views[1] is None:
        return []
    old, new = (_flat(view) for view in views if view is not None)
    return [
        ChangedPart(part=f"system/{name}", before=old.get(name), now=new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _flat(view: SystemView) -> dict[str, str]:
    return {"machine": view.machine, **view.packages, **view.programs}


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
    named = ", ".join(_named(change) for change in changes[:_MOST_NAMED])
    more = f" and {len(changes) - _MOST_NAMED} more" if len(changes) > _MOST_NAMED else ""
    kind = "" if last.succeeded else f", which ended as {last.end_reason}"
    return f"{begin}: since execution {last.execution_id}, of {_when(last)}{kind}, this has changed: {named}{more}."


def _named(change: ChangedPart) -> str:
    if change.before is None:
        return f"{change.part} is new ({shortened(change.now)})"
    if change.now is None:
        return f"{change.part} is gone (it was {shortened(change.before)})"
    return f"{change.part} from {shortened(change.before)} to {shortened(change.now)}"


def shortened(value: str | None) -> str:
    """A part as people compare it: the first twelve digits of a digest."""
    if value is None:
        return "-"
    is_digest = len(value.removesuffix(":x").removeprefix("sha256:")) == 64 and " " not in value
    return (
        f"{value.removesuffix(':x')[: 19 if value.startswith('sha256:') else 12]}{'…' if is_digest else ''}" if is_digest else value
    )


def _more(sentence: str) -> str:
    return f" {sentence}" if sentence else ""


def _when(record: ExecutionRecord) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.ended_at or record.queued_at))
