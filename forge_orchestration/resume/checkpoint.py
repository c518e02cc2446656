"""Checkpoints between executions: which one the next is given, why another is not, and when none is needed any more."""

from __future__ import annotations

from pathlib import Path

from forge_orchestration.errors import ForgeError, SpecError, StoreError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.model.record import CheckpointFacts, ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.resume.changes import changes_since, named
from forge_orchestration.resume.fingerprint import Fingerprint
from forge_orchestration.sandbox.checkpoints import discard, held, latest, made_by
from forge_orchestration.sandbox.plan import CheckpointPlan
from forge_orchestration.settings import Settings


def plan_of(spec: AnalysisSpec, fingerprint: str | None, settings: Settings) -> CheckpointPlan | None:
    """Where an execution publishes its checkpoints, and the one that it goes on from; None without a fingerprint, or if it shall not.

    Whoever asks for a result to be refreshed wants it computed from its beginning; and what a suspect execution has left is not to
    become the result of one that is not.
    """
    if fingerprint is None:
        return None
    if not spec.checkpoints:
        return None
    folder = _folder(fingerprint, settings)
    start = latest(folder)
    own = start and made_by(start) == spec.previous_execution_id  # another attempt of what was to be refreshed goes on with that
    wanted = (own or spec.cache != "refresh") and not _is_suspect(start, settings)
    return CheckpointPlan(folder=str(folder), start=start if wanted else "")


def unused(spec: AnalysisSpec, wanted: Fingerprint | None, settings: Settings, store: Store) -> CheckpointFacts | None:
    """Facts that say why the last execution's checkpoint is not gone on from; None if nothing is to be said."""
    if wanted is None or not spec.checkpoints or spec.cache == "refresh":
        return None
    start = latest(_folder(wanted.digest, settings))
    if _is_suspect(start, settings):
        return CheckpointFacts(
            why=f"The checkpoint of execution {made_by(start)} is not gone on from, because that execution is suspect."
        )
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
    if record.succeeded and record.fingerprint is not None and record.checkpoint is not None:
        folder = _folder(record.fingerprint, settings)
        with held(folder, wait=False) as alone:
            if alone:  # else another execution of the same is being given one
                discard(folder)


def _is_suspect(name: str, settings: Settings) -> bool:
    """Whether a checkpoint was made by an execution that is suspect, as its record says; and if that cannot be read."""
    try:
        return bool(name) and ExecutionFolder(settings.executions_dir, made_by(name)).read_record().suspect
    except SpecError:  # there is none any more: it was removed by the deployment's own rules
        return False
    except StoreError:
        return True


def _folder(fingerprint: str, settings: Settings) -> Path:
    return settings.checkpoints_dir / fingerprint
