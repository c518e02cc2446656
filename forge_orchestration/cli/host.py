"""`forge doctor`, `forge health` and `forge gc`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Literal

import msgspec

from forge_orchestration.engine import Engine
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
    from forge_orchestration.operations.inspection import inspect, targets

    engine = Engine(load_settings())
    looks = [inspect(engine, target, full=arguments.full) for target in targets(engine.settings)]
    if unkept := next((look.unkept for look in looks if look.unkept), ""):
        print(f"forge: {unkept}", file=sys.stderr)
    results = [result for look in looks for result in look.results]
    _print(results, as_json=arguments.json)
    return 3 if any(result.severity == "error" and not result.passed for result in results) else 0


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
