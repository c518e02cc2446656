"""The check `verified`: everything is read. That takes minutes, so it is done in a run, each night and whenever somebody asks."""

from collections.abc import Iterator, Mapping

import dagster as dg

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.operations.inspection import Kind, inspect
from forge_orchestration.orchestration.health_verdict import FULL, materialization, verdict, version_of
from forge_orchestration.orchestration.trust import TRUSTED
from forge_orchestration.runtimes import catalog
from forge_orchestration.settings import Settings

JOB = "verify_in_full"
_ABOUT: Mapping[Kind, str] = {
    "runtime": "Whether every file, package and library of the runtime {} is what was built, and its self-test passes.",
    "storage": "Whether Forge's store is whole, and every output that is kept is what was collected.",
    "database": "Whether every page and index of the protected database {} is whole.",
}


def full_verification(settings: Settings, targets: Mapping[str, Kind], keys: Mapping[str, dg.AssetKey]) -> dg.Definitions:
    """The check `verified` on everything but the host, the job that makes it, and the schedule that launches the job."""
    named = {dg.AssetCheckKey(keys[target], FULL): target for target, kind in targets.items() if kind in _ABOUT}
    specs = [
        dg.AssetCheckSpec(FULL, asset=key.asset_key, description=_ABOUT[targets[name]].format(name)) for key, name in named.items()
    ]

    @dg.multi_asset_check(name="_verify", specs=specs, can_subset=True, op_tags=TRUSTED)  # no analysis' name begins like this
    def verify_in_full(context: dg.AssetCheckExecutionContext):  # type: ignore[no-untyped-def]  # Dagster reads annotations
        """Reads everything, one target after the other, and reports each when it is done."""
        engine = Engine(settings)
        for key in (key for key in named if key in context.selected_asset_check_keys):
            target = named[key]
            if targets[target] == "runtime" and _is_missing(target, settings):
                context.log.info(f"{target} is not built, so there is nothing to verify.")
                continue
            context.log.info(f"{target}: reading everything")
            inspection = inspect(engine, target, full=True)
            context.log.info(f"{target}: {inspection.findings} findings in {inspection.took_s:.1f} s")
            version = version_of(target, targets[target], settings)
            context.op_execution_context.log_event(materialization(key.asset_key, FULL, inspection, version))
            yield dg.AssetCheckResult(asset_key=key.asset_key, check_name=FULL, **verdict(inspection))

    description = "Reads every file of each runtime that is built, every output and every protected database. Takes minutes."
    job = dg.define_asset_job(JOB, selection=dg.AssetSelection.checks(*named), description=description)
    return dg.Definitions(asset_checks=[verify_in_full], jobs=[job], schedules=list(_schedule(settings)))


def _is_missing(name: str, settings: Settings) -> bool:
    try:
        return catalog.state(name, settings)[0] in ("missing", "building")
    except ForgeError:  # it cannot be read, which the look will say
        return False


def _schedule(settings: Settings) -> Iterator[dg.ScheduleDefinition]:
    if settings.health.full_at:
        yield dg.ScheduleDefinition(
            name="forge_verify_in_full",
            job_name=JOB,
            cron_schedule=settings.health.full_at,
            execution_timezone=settings.health.time_zone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description="Launches the job that reads everything.",
        )
