"""Health of the host, of runtimes, and of what Forge and the deployment keep, as asset checks on assets that Dagster does not make.

Two checks on each: `healthy`, by a quick look every few minutes, and `verified`, by reading everything each night.
"""

import socket
from collections.abc import Mapping

import dagster as dg

from forge_orchestration.engine import Engine
from forge_orchestration.operations.inspection import Kind, inspect, targets
from forge_orchestration.orchestration.analysis_assets import usable_name
from forge_orchestration.orchestration.full_verification import full_verification
from forge_orchestration.orchestration.health_sensor import health_sensor
from forge_orchestration.orchestration.health_verdict import QUICK, verdict
from forge_orchestration.orchestration.runtime_repair import repair_definitions
from forge_orchestration.settings import Settings

_ABOUT: Mapping[Kind, str] = {
    "host": "Whether this host can isolate, limit and measure executions as the settings demand.",
    "runtime": "Whether the runtime {} is built and still what it was when it was sealed.",
    "storage": "Whether Forge's store is whole, and outputs are what was collected; some of them are read, others each time.",
    "database": "Whether the protected database {} answers and finds itself whole.",
}


def health_definitions(settings: Settings) -> dg.Definitions:
    """External assets for all that is looked at, their checks, and the sensor, jobs and schedule that make them.

    Raises:
        ForgeError: What is to be looked at cannot be told.
    """
    kinds = targets(settings)
    keys = asset_keys(kinds)
    specs = [
        dg.AssetSpec(key, group_name="health", description=_ABOUT[kinds[target]].format(target), kinds={kinds[target]})
        for target, key in keys.items()
    ]

    @dg.multi_asset_check(
        name="_check_health",  # no analysis' name begins like this, and jobs have theirs
        specs=[
            dg.AssetCheckSpec(QUICK, asset=key, description=_ABOUT[kinds[target]].format(target)) for target, key in keys.items()
        ],
        can_subset=True,
    )
    def check_health(context: dg.AssetCheckExecutionContext):  # type: ignore[no-untyped-def]  # Dagster reads annotations
        """The same checks as the sensor's, for whoever presses Execute."""
        wanted = {key.asset_key for key in context.selected_asset_check_keys}
        engine = Engine(settings)
        for target, key in keys.items():
            if key in wanted:
                yield dg.AssetCheckResult(asset_key=key, check_name=QUICK, **verdict(inspect(engine, target, full=False)))

    runtimes = [target for target, kind in kinds.items() if kind == "runtime"]
    verification = full_verification(settings, kinds, keys)
    repair = repair_definitions(settings, runtimes, keys)
    sensor = health_sensor(settings, kinds, keys, [*(verification.jobs or ()), *(repair.jobs or ())])
    return dg.Definitions.merge(dg.Definitions(assets=specs, asset_checks=[check_health], sensors=[sensor]), verification, repair)


def asset_keys(kinds: Mapping[str, Kind]) -> dict[str, dg.AssetKey]:
    """The asset of each target; host and storage are those of this host."""
    keys: dict[str, dg.AssetKey] = {}
    databases: set[str] = set()
    for target, kind in kinds.items():
        name = target
        if kind in ("host", "storage"):
            name = socket.gethostname()
        elif kind == "database":  # called as the settings like it
            name = usable_name(target, databases)
            databases.add(name)
        keys[target] = dg.AssetKey([kind, name])
    return keys
