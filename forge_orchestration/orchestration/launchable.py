"""What makes an analysis' asset launchable by itself: its job, and its schedule if it has one."""

from collections.abc import Sequence

import dagster as dg

from forge_orchestration.model.spec import AnalysisDefinition
from forge_orchestration.orchestration.sandboxed_executor import sandboxed_executor


def launchable(assets: Sequence[tuple[dg.AssetsDefinition, AnalysisDefinition | None]]) -> dg.Definitions:
    """Assets with a job each, called as they are, by `sandboxed_executor`; and the schedules that their definitions ask for.

    Schedules are stopped until somebody starts them, as all of Dagster's.
    """
    jobs, schedules = [], []
    for asset, definition in assets:
        name, description = asset.key.path[-1], asset.descriptions_by_key[asset.key]
        jobs.append(dg.define_asset_job(name, selection=[asset.key], description=description))
        if definition is not None and definition.schedule:
            schedules.append(_schedule(definition, asset.partitions_def))
    return dg.Definitions(assets=[asset for asset, _ in assets], jobs=jobs, schedules=schedules, executor=sandboxed_executor)


def _schedule(definition: AnalysisDefinition, windows: dg.PartitionsDefinition[str] | None) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{definition.name}_schedule", job_name=definition.name, cron_schedule=definition.schedule, execution_timezone="UTC"
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if windows is None:
            return dg.RunRequest()
        over = windows.get_partition_keys(context.scheduled_execution_time)
        return dg.RunRequest(partition_key=over[-1]) if over else dg.SkipReason(f"No window of {definition.name} is over yet.")

    return schedule
