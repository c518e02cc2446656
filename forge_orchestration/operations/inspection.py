"""What is looked at, one target after the other, quickly or in full: the same for `forge health` and for Dagster."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.health import last, storage
from forge_orchestration.health.checks import host_checks, runtime_check
from forge_orchestration.health.databases import check_database_names, database_checks
from forge_orchestration.model.health import CheckResult
from forge_orchestration.operations.verification import as_check, verify
from forge_orchestration.runtimes import catalog
from forge_orchestration.settings import Settings

HOST = "host"
Kind = Literal["host", "runtime", "storage", "database"]


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of one target.

    Attributes:
        target: `host`, `storage`, or the name of a runtime or a protected database.
        findings: How many things are not as they should be; a check of a runtime's files may have many.
        took_s: How long it took to look, wall time.
        files: Of a runtime that is built: how many files, folders and links it has.
        unkept: Why it was not kept for the metrics; empty if it was.
    """

    target: str
    results: list[CheckResult]
    findings: int
    took_s: float
    files: int | None = None
    unkept: str = ""


def targets(settings: Settings) -> dict[str, Kind]:
    """All that can be looked at, the host first.

    Raises:
        ForgeError: The runtimes cannot be listed, or a database has the name of something else.
    """
    check_database_names(settings)
    runtimes: dict[str, Kind] = dict.fromkeys(catalog.runtime_names(settings), "runtime")
    databases: dict[str, Kind] = dict.fromkeys(settings.protected_databases, "database")
    return {HOST: "host", **runtimes, storage.TARGET: "storage", **databases}


def inspect(engine: Engine, target: str, *, full: bool) -> Inspection:
    """Look at one target, and keep what was found for the metrics. What cannot be looked at is a finding, not an error.

    Args:
        full: Read everything; takes minutes for a large runtime. A full look at a runtime that is not built is a quick one, and the
            host has no other.
    """
    started = time.monotonic()
    findings = files = None
    tier: last.Tier = "full" if full and target != HOST else "quick"
    try:
        if target == HOST:
            results = host_checks(engine.settings)
        elif target == storage.TARGET:
            results = storage.storage_checks(engine.settings, full=full)
        elif target in engine.settings.protected_databases:
            results = database_checks(engine.settings, full=full, only=(target,))
        else:
            files = _files(target, engine.settings)
            if full and files is not None:
                verified = verify(engine, target, full=True)
                findings, results = len(verified.findings), [as_check(verified)]
            else:
                tier = "quick"
                results = [runtime_check(target, engine.settings)]
    except ForgeError as error:
        results = [CheckResult(name="look", target=target, passed=False, finding=error.message, remedy=error.hint)]
    except OSError as error:
        results = [CheckResult(name="look", target=target, passed=False, finding=f"it cannot be looked at: {error}")]
    if findings is None:
        findings = sum(not result.passed for result in results)
    unkept = last.keep(engine.settings, results, tier)
    return Inspection(
        target=target, results=results, findings=findings, took_s=round(time.monotonic() - started, 3), files=files, unkept=unkept
    )


def _files(name: str, settings: Settings) -> int | None:
    """How many files the build of a runtime has; None if there is none, or it cannot be read, which the checks will say."""
    try:
        build = catalog.load_build(catalog.build_folder(catalog.load_definition(name, settings), settings))
    except ForgeError:
        return None
    return build.files if build else None
