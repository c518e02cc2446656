"""Whether what Forge itself keeps is whole: its store, and outputs that were collected, by the digests in their records."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from forge_orchestration.errors import ForgeError, SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.health.databases import sqlite_checks
from forge_orchestration.model.health import CheckResult
from forge_orchestration.runtimes.hashing import sha256_of
from forge_orchestration.settings import Settings

TARGET = "storage"
_SAMPLED_BYTES = 256 << 20
_MOST_NAMED = 5


def storage_checks(settings: Settings, *, full: bool) -> list[CheckResult]:
    """The store's integrity, and whether outputs still are what was collected.

    Args:
        full: Read every output that is kept; else at most 256 MiB, chosen anew each time.
    """
    results: list[CheckResult] = []
    if settings.store_path.exists():
        results += sqlite_checks(TARGET, settings.store_path, full=full)
    results.append(_outputs(settings, full))
    return results


def _outputs(settings: Settings, full: bool) -> CheckResult:
    names = [name for name in _executions(settings) if (settings.executions_dir / name / "outputs").is_dir()]
    random.shuffle(names)
    looked, left, wrong = 0, _SAMPLED_BYTES, []
    for name in names:
        if not full and left <= 0:
            break
        for path, found in _wrong(settings, name):
            wrong.append(f"{path} {found}")
        files, size = _amount(settings, name)
        looked, left = looked + files, left - size
    if wrong:
        more = f" (and {len(wrong) - _MOST_NAMED} more)" if len(wrong) > _MOST_NAMED else ""
        finding = f"no longer what was collected: {'; '.join(wrong[:_MOST_NAMED])}{more}"
        return CheckResult(
            name="outputs", target=TARGET, passed=False, finding=finding, remedy="Run the analysis again, or restore a backup. Look at the disk.",
            corruption=True,
        )  # fmt: skip
    return CheckResult(
        name="outputs", target=TARGET, passed=True, finding=f"{looked} outputs that were read are what was collected"
    )


def _wrong(settings: Settings, name: str) -> Iterator[tuple[Path, str]]:
    try:
        record = ExecutionFolder(settings.executions_dir, name).read_record()
    except SpecError:  # one that is being made
        return
    except ForgeError as error:
        yield settings.executions_dir / name / "record.json", f"cannot be read, so its outputs are not known ({error.message})"
        return
    if not record.status.is_final:
        return
    root = settings.executions_dir / name / "outputs"
    digests = sha256_of(root, ((output.path, output.bytes) for output in record.outputs))
    for output in record.outputs:
        if (found := digests.get(output.path)) is None:
            yield root / output.path, "is missing or cannot be read"
        elif found != output.sha256:
            yield root / output.path, "has other content"


def _amount(settings: Settings, name: str) -> tuple[int, int]:
    try:
        outputs = ExecutionFolder(settings.executions_dir, name).read_record().outputs
    except ForgeError:
        return 0, 0
    return len(outputs), sum(output.bytes for output in outputs)


def _executions(settings: Settings) -> list[str]:
    try:
        return os.listdir(settings.executions_dir)
    except FileNotFoundError:
        return []
