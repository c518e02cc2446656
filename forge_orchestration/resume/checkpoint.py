"""Checkpoints between executions: which one the next is given, why another is not, and when none is needed any more."""

from __future__ import annotations

import shutil
from pathlib import Path

from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.model.record import CheckpointFacts, ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.resume.changes import changes_since, named
from forge_orchestration.resume.fingerprint import Fingerprint
from forge_orchestration.sandbox.checkpoints import latest
from forge_orchestration.sandbox.plan import CheckpointPlan
from forge_orchestration.settings import Settings


def plan_of(spec: AnalysisSpec, fingerprint: str | None, settings: Settings) -> CheckpointPlan | None:
    """Where an execution publishes its checkpoints, and the one that it goes on from; None without a fingerprint.

    Whoever asks for a result to be refreshed wants it computed from its beginning.
    """
    if fingerprint is None:
        return None
    folder = _folder(fingerprint, settings)
    return CheckpointPlan(folder=str(folder), start="" if spec.cache == "refresh" else latest(folder))


def unused(spec: AnalysisSpec, wanted: Fingerprint | None, settings: Settings, store: Store) -> CheckpointFacts | None:
    """Facts that say why the last execution's checkpoint is not gone on from; None if nothing is to be said."""
    if wanted is None or spec.cache == "refresh":
        return None
    for execution_id in store.latest_of(spec.name, spec.partition)[:1]:
        try:
            last = ExecutionFolder(settings.executions_dir, execution_id).read_record()
        except ForgeError:
            return None
        if last.fingerprint in (None, wanted.digest) or last.checkpoint is None or not last.checkpoint.kept:
            return None
        changed = named(changes_since(last, wanted, settings))
        return CheckpointFacts(
            why=f"The checkpoint of execution {execution_id} is not gone on from, because this has changed: {changed}."
        )
    return None


def forget(record: ExecutionRecord, settings: Settings) -> None:
    """Remove the checkpoints of what has succeeded: nothing is left to go on with."""
    if record.succeeded and record.fingerprint is not None:
        shutil.rmtree(_folder(record.fingerprint, settings), ignore_errors=True)


def _folder(fingerprint: str, settings: Settings) -> Path:
    return settings.checkpoints_dir / fingerprint
