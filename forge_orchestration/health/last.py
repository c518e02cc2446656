"""The last result of each health check, in `FORGE_HOME/health.json`: what the metrics and the Quest view say of health.

Whoever looks keeps here what it found: `forge doctor`, `forge health`, `forge runtimes verify`, the sensor. Several may at once.
A file that cannot be read says that nothing is known, and one that cannot be written keeps nobody from seeing what was found.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.folder import write_atomically
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.health import CheckResult
from forge_orchestration.runtimes.catalog import runtime_names
from forge_orchestration.settings import Settings

Tier = Literal["quick", "full"]


class LastResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was found when a check last looked.

    Attributes:
        tier: How closely it looked.
        checked_at: When, in seconds since the epoch.
        since: Since when it has been as it is, passed or failed, as far as anybody has looked.
        about: What the target is; runtimes and databases come and go, and what is known of them goes with them.
    """

    result: CheckResult
    tier: Tier
    checked_at: float
    since: float
    about: Literal["runtime", "database", "other"] = "other"

    @property
    def key(self) -> tuple[str, str]:
        return self.result.target, self.result.name


@compiled
class LastResults(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    version: int = 1
    results: list[LastResult] = []


def read(settings: Settings) -> list[LastResult]:
    """What is known of everything that is still there, by target and check; nothing if the file is missing or torn."""
    try:
        runtimes = runtime_names(settings)
    except ForgeError:  # told by whoever checks them
        runtimes = None
    there = {"runtime": runtimes, "database": list(settings.protected_databases)}
    return [one for one in _load(_path(settings)) if (names := there.get(one.about)) is None or one.result.target in names]


def keep(settings: Settings, results: Sequence[CheckResult], tier: Tier) -> str:
    """Keep what a look has found.

    What it no longer says of a target is forgotten: what a quick look said by a quick one, everything by a full one. A failure
    that a full look has found stays until a full look finds all well, because a quick one would not have seen it.

    Args:
        results: Everything that the look has found of each of its targets.

    Returns:
        Why it was not kept, one sentence; empty if it was.
    """
    now = time.time()
    targets = {result.target for result in results}
    try:
        with _locked(settings):
            before = {one.key: one for one in _load(_path(settings))}
            after = {
                key: one
                for key, one in before.items()
                if one.result.target not in targets or (tier == "quick" and one.tier == "full")
            }
            for result in results:
                last = before.get((result.target, result.name))
                if last is not None and last.tier == "full" and not last.result.passed and tier == "quick":
                    continue
                since = last.since if last is not None and last.result.passed == result.passed else now
                about = _about(result.target, settings)
                after[result.target, result.name] = LastResult(result=result, tier=tier, checked_at=now, since=since, about=about)
            _write(settings, [after[key] for key in sorted(after)])
    except OSError as error:
        return f"What was found is not kept for the metrics: {_path(settings)} cannot be written ({error.strerror or error})."
    return ""


def forget(settings: Settings, target: str, before: float) -> None:
    """Forget what was found of `target` earlier than `before`: it has been made anew since."""
    with contextlib.suppress(OSError), _locked(settings):
        _write(
            settings, [one for one in _load(_path(settings)) if one.result.target != target or one.checked_at >= before]
        )  # fmt: skip


def _about(target: str, settings: Settings) -> Literal["runtime", "database", "other"]:
    if target in settings.protected_databases:
        return "database"
    with contextlib.suppress(ForgeError):
        if target in runtime_names(settings):
            return "runtime"
    return "other"


def _path(settings: Settings) -> Path:
    return settings.home / "health.json"


def _load(path: Path) -> list[LastResult]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=LastResults).results
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):
        return []


def _write(settings: Settings, results: list[LastResult]) -> None:
    data = msgspec.json.format(msgspec.json.encode(LastResults(results=results)), indent=1)
    write_atomically(_path(settings), data + b"\n")


@contextlib.contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """Hold the file's own lock, which is another file: the first is replaced whole."""
    fd = os.open(settings.home / ".health.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
