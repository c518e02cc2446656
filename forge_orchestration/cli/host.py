"""`forge doctor`, `forge health` and `forge gc`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Literal

import msgspec

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.model.health import CheckResult
from forge_orchestration.settings import Settings, load_settings


def doctor(arguments: argparse.Namespace) -> int:
    """Every check of host and runtimes; exit status 3 if an execution would be refused, 0 otherwise."""
    from forge_orchestration.health.checks import run_checks

    settings = load_settings()
    results = run_checks(settings)
    keep(settings, results, "quick")
    failed = [result for result in results if not result.passed]
    _print(results, as_json=arguments.json)
    return 3 if any(result.severity == "error" and result.target == "host" for result in failed) else 0


def health(arguments: argparse.Namespace) -> int:
    """What `doctor` checks, and databases, store and outputs; `--full` reads everything. Exit status 3 if an error was found."""
    from forge_orchestration.health.checks import run_checks
    from forge_orchestration.health.databases import database_checks
    from forge_orchestration.health.storage import storage_checks

    settings = load_settings()
    results = run_checks(settings)
    keep(settings, results, "quick")
    deep = storage_checks(settings, full=arguments.full) + database_checks(settings, full=arguments.full)
    if arguments.full:
        results = [result for result in results if result.name != "seal"]
        deep = _full_runtime_checks(Engine(settings)) + deep
    keep(settings, deep, "full" if arguments.full else "quick")
    results += deep
    _print(results, as_json=arguments.json)
    return 3 if any(result.severity == "error" and not result.passed for result in results) else 0


def _full_runtime_checks(engine: Engine) -> list[CheckResult]:
    from forge_orchestration.operations.verification import as_check, verify
    from forge_orchestration.runtimes import catalog

    results = []
    for name in catalog.runtime_names(engine.settings):
        if catalog.state(name, engine.settings)[0] in ("missing", "building"):
            continue
        try:
            results.append(as_check(verify(engine, name, full=True)))
        except ForgeError as error:
            results.append(CheckResult(name="content", target=name, passed=False, finding=error.message, remedy=error.hint))
    return results


def keep(settings: Settings, results: Sequence[CheckResult], tier: Literal["quick", "full"]) -> None:
    """Keep what was found for the metrics; what keeps it from being kept is told on stderr."""
    from forge_orchestration.health import last

    if why := last.keep(settings, results, tier):
        print(f"forge: {why}", file=sys.stderr)


def _print(results: list[CheckResult], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
        return
    for result in results:
        mark = "ok  " if result.passed else "FAIL" if result.severity == "error" else "warn"
        print(f"{mark}  {result.target:<18} {result.name:<22} {result.finding}")
        if result.remedy:
            print(f"{'':27}{'':<22}→ {result.remedy}")


def collect_garbage(arguments: argparse.Namespace) -> int:
    """Reconcile after a crash; exit status 5 if something could not be put right."""
    from forge_orchestration.operations.reconcile import reconcile

    report = reconcile(Engine(load_settings()))
    if arguments.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    else:
        print(
            f"{report.alive} alive, {len(report.closed)} closed, {len(report.indexed)} indexed, {len(report.removed)} leftovers removed"
        )
        for line in (*report.closed, *report.removed):
            print(f"  {line}")
    for problem in report.problems:
        print(f"forge: {problem}", file=sys.stderr)
    return 5 if report.problems else 0
