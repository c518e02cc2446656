"""Whether what Forge itself keeps is whole: its store, outputs by the digests in their records, logs; and whether dead executions left anything."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

from forge_orchestration.errors import ForgeError, HostError, SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.executors.recovery import Recovery
from forge_orchestration.health.databases import sqlite_checks
from forge_orchestration.model.health import CheckResult
from forge_orchestration.runtimes.hashing import sha256_of
from forge_orchestration.sandbox.cgroups.find import find_site
from forge_orchestration.settings import Settings

TARGET = "storage"
_SAMPLED_BYTES = 256 << 20
_SAMPLED_LOGS = 1000
_MOST_NAMED = 5


def storage_checks(settings: Settings, *, full: bool) -> list[CheckResult]:
    """The store's integrity, what dead executions have left, and whether outputs and logs still are what was collected.

    Args:
        full: Read every output that is kept; else at most 256 MiB, chosen anew each time, and look at the logs of 1000 executions.
    """
    results: list[CheckResult] = []
    if settings.store_path.exists():
        results += sqlite_checks(TARGET, settings.store_path, full=full)
        results.append(_leftovers(settings))
    results.append(_outputs(settings, full))
    results.append(_logs(settings, full))
    return results


def _leftovers(settings: Settings) -> CheckResult:
    """Executions that nobody brings to their end, and workspaces, groups and claims on uids of such; nothing is removed."""

    def result(finding: str, remedy: str = "") -> CheckResult:
        return CheckResult(name="leftovers", target=TARGET, passed=not remedy, severity="warning", finding=finding, remedy=remedy)

    site = None
    with contextlib.suppress(HostError):  # then there are no groups either
        site = find_site(settings.cgroup.parent)
    try:
        with contextlib.closing(Store(settings.store_path)) as store:
            recovery = Recovery(store, settings, site)
            dead = sorted(recovery.find())
    except (ForgeError, OSError) as error:
        return result(f"what dead executions have left cannot be told: {error}", "Put it right: forge gc")
    if dead:
        more = f" and {len(dead) - _MOST_NAMED} more" if len(dead) > _MOST_NAMED else ""
        return result(f"nobody brings to their end, or cleans up after: {', '.join(dead[:_MOST_NAMED])}{more}", "forge gc")
    if recovery.nameless():
        return result("helpers or claims on uids of dead supervisors are left", "forge gc")
    return result("dead executions have left nothing")


def _logs(settings: Settings, full: bool) -> CheckResult:
    """Whether logs that records speak of are there, as long as they were."""
    names = _executions(settings)
    if not full and len(names) > _SAMPLED_LOGS:
        names = random.sample(names, _SAMPLED_LOGS)
    missing = []
    for name in names:
        with contextlib.suppress(ForgeError):  # told with the outputs
            record = ExecutionFolder(settings.executions_dir, name).read_record()
            if record.status.is_final:
                missing += [log.path for log in record.logs.values() if log.bytes and _size(log.path) < log.bytes]
    more = f" (and {len(missing) - _MOST_NAMED} more)" if len(missing) > _MOST_NAMED else ""
    finding = (
        f"gone or shorter than recorded: {', '.join(missing[:_MOST_NAMED])}{more}"
        if missing
        else f"those of {len(names)} executions are there"
    )
    remedy = "Restore a backup, or look who removes them." if missing else ""
    return CheckResult(name="logs", target=TARGET, passed=not missing, severity="warning", finding=finding, remedy=remedy)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


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
