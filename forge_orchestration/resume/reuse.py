"""Whether an analysis has to be run at all: what decides its result, who has it already, and who is just computing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from forge_orchestration.executions.folder import ExecutionFolder, write_atomically
from forge_orchestration.executions.inputs import SNAPSHOT, ResolvedInput, has_changed
from forge_orchestration.executions.store import Store
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.resume.fingerprint import Fingerprint, fingerprint_of
from forge_orchestration.resume.results import Found, find_result
from forge_orchestration.resume.system_view import system_digest
from forge_orchestration.runtimes.catalog import ResolvedRuntime
from forge_orchestration.settings import Settings

_CODE = "code/"
_INPUTS = "inputs.json"


def fingerprint(
    spec: AnalysisSpec, runtime: ResolvedRuntime, inputs: Sequence[ResolvedInput], settings: Settings, store: Store,
    code: Mapping[str, str] | None = None,
) -> Fingerprint | None:  # fmt: skip
    """What decides the result of `spec`; None for a bare command whose result nobody wants to reuse.

    Args:
        code: Digests of the analysis' files, if they are known: of the copies that are run.

    Raises:
        SpecError: A file of the analysis cannot be read.
    """
    if spec.folder is None and spec.cache == "off":
        return None
    if code is None:
        code = {}
        if spec.folder is not None:
            from forge_orchestration.executions.code import code_digests

            code = code_digests(Path(spec.folder), store, spec.files, is_function=bool(spec.function))
    # of the host nothing is seen in an image
    shown = runtime.runtime.kind != "image"
    system = system_digest(settings.cache_dir, store, settings.verify_max_age_s) if shown else "an image's own"
    return fingerprint_of(spec, code=code, inputs=inputs, runtime=runtime.runtime.content_digest, system=system)


def code_parts(record: ExecutionRecord) -> dict[str, str]:
    """Digests of the files of the analysis that an execution has copied."""
    return {name.removeprefix(_CODE): digest for name, digest in record.fingerprint_parts.items() if name.startswith(_CODE)}


def find(spec: AnalysisSpec, wanted: Fingerprint | None, settings: Settings, store: Store) -> Found:
    """An earlier result that the request may take."""
    if wanted is None or spec.cache not in ("use", "only"):
        return Found(None)
    return find_result(wanted.digest, store, settings.executions_dir)


def keep_inputs(inputs: Sequence[ResolvedInput], folder: ExecutionFolder) -> None:
    """Remember which files were read: whoever sees the execution's end looks whether they are still the same."""
    if inputs:
        write_atomically(folder.path / _INPUTS, msgspec.json.encode(inputs))
    for item in inputs:
        if item.facts.source.startswith(SNAPSHOT):
            from forge_orchestration.executions.snapshots import keep_snapshot  # only who has one waits for what it loads

            keep_snapshot(item.name, Path(item.path), folder)


def confirmed(record: ExecutionRecord, folder: ExecutionFolder, store: Store) -> ExecutionRecord:
    """The record of an execution that has ended, with whether its result may be reused; for who holds the folder's lock."""
    cache = record.cache
    if not record.succeeded or record.fingerprint is None or cache.policy == "off" or cache.reusable is not None:
        return record
    kept = _inputs(folder)
    changed = [item.name for item in kept if has_changed(item, store)]
    changed += sorted({one.name for one in record.inputs} - {item.name for item in kept})
    if changed:
        were = "was" if len(changed) == 1 else "were"
        said = f"Input {', '.join(changed)} {were} changed while the analysis ran: nobody can say which content this result is of."
        return msgspec.structs.replace(
            record, cache=msgspec.structs.replace(cache, why=f"{cache.why} {said}".strip(), reusable=False)
        )
    return msgspec.structs.replace(record, cache=msgspec.structs.replace(cache, reusable=True))


def _inputs(folder: ExecutionFolder) -> list[ResolvedInput]:
    try:
        return msgspec.json.decode((folder.path / _INPUTS).read_bytes(), type=list[ResolvedInput])
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):
        return []
