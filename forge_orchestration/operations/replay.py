"""Replay: an execution once more from its record, in a runtime of the same content, and whether it makes the same bytes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import msgspec

from forge_orchestration.engine import Engine
from forge_orchestration.errors import RuntimeCatalogError, SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.inputs import SNAPSHOT
from forge_orchestration.executions.upstream import ASSET
from forge_orchestration.executors.feed import Listener
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.operations.again import request_of
from forge_orchestration.operations.compare import Difference, differences
from forge_orchestration.operations.repair import make
from forge_orchestration.resume.changes import ChangedPart, changes_since, named
from forge_orchestration.runtimes import catalog
from forge_orchestration.settings import Settings

_DECIDED_BY_OTHERS = ("input/", "runtime")  # of a bare command, of which no fingerprint was kept


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        original: Id of the execution that was replayed.
        execution_id: Of the new one, whose end is `end_reason`.
        verdict: `identical`, `different`, or `failed` if the new one did not succeed.
        differences: Outputs that are not the same.
        changed: What was no longer the same before it began; only where that was forced.
    """

    original: str
    execution_id: str
    end_reason: str
    verdict: str
    outputs: int
    differences: list[Difference]
    changed: list[ChangedPart]


def replay(
    engine: Engine, record: ExecutionRecord, *, executor: str | None = None, force: bool = False, listener: Listener | None = None,
    cancel: threading.Event | None = None, say: Callable[[str], None] = lambda text: None,
) -> Replayed:  # fmt: skip
    """Run an execution that succeeded again, from its record, and compare the outputs.

    Args:
        executor: Another than it ran on.
        force: Run it although something is no longer the same.
        say: Told of a runtime that has to be built first.

    Raises:
        SpecError: It did not succeed, or something that decides its result is no longer the same.
        ForgeError: It cannot be run.
    """
    settings = engine.settings
    if record.cache.source_execution_id is not None:
        record = ExecutionFolder(settings.executions_dir, record.cache.source_execution_id).read_record()
    if not record.succeeded:
        raise SpecError(
            f"Execution {record.execution_id} did not succeed, so there is nothing to compare with.",
            f"Go on with it: forge resume {record.execution_id}",
        )
    spec = request_of(record, settings)
    # of another analysis' latest output, and of a database, that very state is meant which was read then
    pinned = {one.name: one.source for one in record.inputs if spec.inputs.get(one.name, "").startswith((ASSET, SNAPSHOT))}
    spec = msgspec.structs.replace(
        spec, runtime=_runtime(engine, record, spec.runtime, force, say), inputs=spec.inputs | pinned, cache="off", publish={},
        checkpoints=False, executor=executor or spec.executor, limits=record.limits, attempt=1, previous_execution_id=record.execution_id,
        dagster_run_id=None, dagster_step_key=None,
    )  # fmt: skip
    changed = _changed(engine, record, spec)
    if changed and not force:
        raise SpecError(
            f"Execution {record.execution_id} cannot be replayed, because this is no longer the same: {named(changed)}.",
            "To run it all the same: --force",
        )
    second = engine.run(spec, listener=listener, cancel=cancel)
    found = differences(record, second) if second.succeeded else []
    verdict = "failed" if not second.succeeded else "different" if found else "identical"
    return Replayed(
        original=record.execution_id, execution_id=second.execution_id, end_reason=str(second.end_reason), verdict=verdict,
        outputs=len(record.outputs), differences=found, changed=changed,
    )  # fmt: skip


def _changed(engine: Engine, record: ExecutionRecord, spec: AnalysisSpec) -> list[ChangedPart]:
    wanted = engine.fingerprint(msgspec.structs.replace(spec, cache="use"))
    if record.fingerprint is not None:
        return changes_since(record, wanted, engine.settings)
    before = {f"input/{one.name}": one.sha256 for one in record.inputs}
    before |= {"runtime": record.runtime.content_digest} if record.runtime is not None else {}
    now = {name: value for name, value in wanted.parts.items() if name.startswith(_DECIDED_BY_OTHERS)}
    return [
        ChangedPart(part=name, before=before.get(name), now=now.get(name))
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _runtime(engine: Engine, record: ExecutionRecord, asked: str, force: bool, say: Callable[[str], None]) -> str:
    """Name of a build with the content that the execution had: one that is there, or the one that the lock makes."""
    facts = record.runtime
    if facts is None:
        return asked
    wanted, name = facts.content_digest, facts.name
    for build in _builds(name, engine.settings):
        if build.content_digest == wanted:
            with contextlib.suppress(RuntimeCatalogError):  # damaged, or in quarantine
                catalog.resolve(f"{name}@{build.build}", engine.settings)
                return f"{name}@{build.build}"
    made = make(engine, name, say=say)
    if made.content_digest == wanted or force:
        return name
    raise SpecError(
        f"Execution {record.execution_id} cannot be replayed: no runtime has the content that it ran with ({wanted[:12]}), and what the lock of "
        f"'{name}' makes now has another ({made.content_digest[:12]}).",
        "To run it all the same: --force",
    )


def _builds(name: str, settings: Settings) -> Iterator[catalog.Runtime]:
    for build_id in catalog.build_ids(name, settings):
        with contextlib.suppress(RuntimeCatalogError):
            if (build := catalog.load_build(settings.runtimes_dir / name / build_id)) is not None:
                yield build
