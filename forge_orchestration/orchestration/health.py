"""Health of the host and of each runtime, as asset checks on assets that Dagster does not make.

A sensor looks every few minutes, in the code server, without a run: the checks are cheap. It reports what has changed
at once, and what has not changed once an hour, so that a quiet deployment does not fill its own event log.
"""

import hashlib
import json
import platform
import socket
import time
from collections.abc import Sequence
from typing import Any

import dagster as dg

from forge_orchestration.errors import ForgeError
from forge_orchestration.health.checks import run_checks
from forge_orchestration.health.last import keep
from forge_orchestration.model.health import CheckResult
from forge_orchestration.runtimes.catalog import build_folder, load_build, load_definition
from forge_orchestration.settings import Settings

EVERY_S = 300
REPEAT_S = 3600.0
CHECK = "healthy"


def health_definitions(settings: Settings, runtimes: Sequence[str]) -> dg.Definitions:
    """External assets for this host and its runtimes, a check on each, and the sensor that reports them."""
    keys = {"host": dg.AssetKey(["host", socket.gethostname()])}
    keys |= {name: dg.AssetKey(["runtime", name]) for name in runtimes}
    specs = [
        dg.AssetSpec(key, group_name="health", description=_about(target), kinds={"host" if target == "host" else "runtime"})
        for target, key in keys.items()
    ]

    @dg.multi_asset_check(
        name="_check_health",  # no analysis' name begins like this, and jobs have theirs
        specs=[dg.AssetCheckSpec(CHECK, asset=key, description=_about(target)) for target, key in keys.items()],
        can_subset=True,
    )
    def check_health(context: dg.AssetCheckExecutionContext):  # type: ignore[no-untyped-def]  # Dagster reads annotations
        """The same checks as the sensor's, for whoever presses Execute."""
        wanted = {key.asset_key for key in context.selected_asset_check_keys}
        targets = [target for target, key in keys.items() if key in wanted]
        for target, results in _by_target(run_checks(settings, targets), targets).items():
            yield dg.AssetCheckResult(asset_key=keys[target], check_name=CHECK, **_verdict(results))

    @dg.sensor(
        name="forge_health",
        minimum_interval_seconds=EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Checks this host and its runtimes, and reports what it finds on their assets. Starts no runs.",
    )
    def forge_health(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        before: dict[str, Any] = json.loads(context.cursor) if context.cursor else {}
        results = run_checks(settings)
        keep(settings, results, "quick")
        found = _by_target(results, list(keys))
        events: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
        now: dict[str, Any] = {}
        for target, results in found.items():
            last, key = before.get(target, {}), keys[target]
            version, state = _version(target, settings), _state(results)
            replaced = last.get("version") != version
            if replaced:
                events.append(dg.AssetMaterialization(key, tags={"dagster/data_version": version}))
            told = replaced or last.get("state") != state or time.time() - last["at"] >= REPEAT_S
            if told:
                events.append(dg.AssetCheckEvaluation(asset_key=key, check_name=CHECK, **_verdict(results)))
            now[target] = {"version": version, "state": state, "at": time.time() if told else last["at"]}
        unhealthy = [target for target, results in found.items() if not _verdict(results)["passed"]]
        summary = f"Not healthy: {', '.join(unhealthy)}." if unhealthy else "All is healthy."
        return dg.SensorResult(asset_events=events, cursor=json.dumps(now), skip_reason=f"{summary} {len(events)} events reported.")

    return dg.Definitions(assets=specs, asset_checks=[check_health], sensors=[forge_health])


def _about(target: str) -> str:
    if target == "host":
        return "Whether this host can isolate, limit and measure executions as the settings demand."
    return f"Whether the runtime {target} is built and still what it was when it was sealed."


def _by_target(results: Sequence[CheckResult], targets: Sequence[str]) -> dict[str, list[CheckResult]]:
    return {target: [result for result in results if result.target == target] for target in targets}


def _version(target: str, settings: Settings) -> str:
    """What a runtime is, by the digest of its content; for a host, the kernel that enforces what is promised."""
    if target == "host":
        return platform.release()
    try:
        build = load_build(build_folder(load_definition(target, settings), settings))
    except ForgeError:  # the checks say what is wrong with it
        return "unknown"
    return build.content_digest if build else "not built"


def _state(results: Sequence[CheckResult]) -> str:
    """A digest of which checks passed; findings hold measured numbers that change all the time."""
    return hashlib.sha256(json.dumps([(result.name, result.passed) for result in results]).encode()).hexdigest()


def _verdict(results: Sequence[CheckResult]) -> dict[str, Any]:
    """All checks of one target as one: whether all passed, how bad it is, what to do, and a table of them."""
    failed = [result for result in results if not result.passed]
    errors = [result for result in failed if result.severity == "error"]
    if not results:
        return {"passed": False, "severity": dg.AssetCheckSeverity.WARN, "description": "No check looked at it."}
    columns = ("check", "passed", "finding", "remedy")
    rows = [(result.name, result.passed, result.finding, result.remedy) for result in results]
    schema = dg.TableSchema([dg.TableColumn(column, "bool" if column == "passed" else "string") for column in columns])
    return {
        "passed": not failed,
        "severity": dg.AssetCheckSeverity.ERROR if errors else dg.AssetCheckSeverity.WARN,
        "description": " ".join(map(_sentence, errors or failed)) or "All checks passed.",
        "metadata": {
            "checks": dg.MetadataValue.table([dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows], schema)
        },
    }


def _sentence(result: CheckResult) -> str:
    remedy = f" Remedy: {result.remedy}" if result.remedy else ""
    return f"{result.name}: {result.finding.rstrip('.')}.{remedy}"
