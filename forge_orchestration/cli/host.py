"""`forge doctor`, `forge health` and `forge gc`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Literal

import msgspec

from forge_orchestration.engine import Engine
from forge_orchestration.errors import SpecError
from forge_orchestration.model.health import CheckResult
from forge_orchestration.operations.retention import Removal, Rules, removable, remove
from forge_orchestration.settings import Settings, load_settings
from forge_orchestration.units import format_bytes, parse_bytes, parse_seconds


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
    """Reconcile after a crash, and then apply rules of retention, if there are any; exit status 5 if something could not be put right."""
    from forge_orchestration.operations.reconcile import reconcile

    rules = _rules(arguments)
    engine = Engine(load_settings())
    report = reconcile(engine)
    removals = removable(engine, rules) if rules is not None else []
    gone = remove(engine, removals) if arguments.remove else []
    if arguments.json:
        told = msgspec.to_builtins(report)
        if rules is not None:
            told["retention"] = {"removable": msgspec.to_builtins(removals), "removed": msgspec.to_builtins(gone)}
        print(json.dumps(told, indent=2))
    else:
        print(
            f"{report.alive} alive, {len(report.closed)} closed, {len(report.indexed)} indexed, {len(report.removed)} leftovers removed"
            + (f", {len(report.published)} results published" if report.published else "")
        )
        for line in (*report.closed, *report.removed, *report.published):
            print(f"  {line}")
        if rules is not None:
            _print_removals(gone if arguments.remove else removals, gone=arguments.remove)
    for problem in report.problems:
        print(f"forge: {problem}", file=sys.stderr)
    return 5 if report.problems else 0


def _rules(arguments: argparse.Namespace) -> Rules | None:
    """What is asked to go; None if nothing is."""
    if arguments.older_than is None and arguments.max_size is None:
        if arguments.remove or arguments.keep_last is not None:
            raise SpecError("Nothing says what is to be removed.", "Say --older-than 90d, or --max-size 500GiB, or both.")
        return None
    return Rules(
        older_than_s=None if arguments.older_than is None else parse_seconds(arguments.older_than, "--older-than"),
        max_bytes=None if arguments.max_size is None else parse_bytes(arguments.max_size, "--max-size"),
        keep_last=1 if arguments.keep_last is None else arguments.keep_last,
    )


def _print_removals(removals: list[Removal], *, gone: bool) -> None:
    total = format_bytes(sum(one.bytes for one in removals))
    if gone:
        print(f"{len(removals)} removed, {total} freed")
    else:
        print(f"{len(removals)} could be removed, and {total} freed" + (": say --remove" if removals else ""))
    for one in removals:
        ended = time.strftime("%Y-%m-%d", time.localtime(one.ended_at))
        print(f"  {one.what}  {one.analysis or 'checkpoints':<20} {ended}  {format_bytes(one.bytes):>10}  {one.why}")
