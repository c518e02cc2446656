"""What makes an analysis' asset launchable by itself: its job, and its schedule if it has one."""

from collections.abc import Sequence
from typing import NamedTuple

import dagster as dg

from forge_orchestration.model.spec import AnalysisDefinition
from forge_orchestration.orchestration.sandboxed_executor import sandboxed_executor


class Launchable(NamedTuple):
    """An analysis: its assets, one a stage, and its definition, unless it cannot be used."""

    name: str
    assets: list[dg.AssetsDefinition]
    definition: AnalysisDefinition | None


def launchable(analyses: Sequence[Launchable]) -> dg.Definitions:
    """Assets with a job for each analysis, called as it is, by `sandboxed_executor`; and the schedules that definitions ask for.

    Schedules are stopped until somebody starts them, as all of Dagster's.
    """
    jobs, schedules = [], []
    for name, assets, definition in analyses:
        described = definition.description if definition is not None and definition.stages else None
        description = described or assets[0].descriptions_by_key[assets[0].key]
        jobs.append(dg.define_asset_job(name, selection=[asset.key for asset in assets], description=description))
        if definition is not None and definition.schedule:
            schedules.append(_schedule(definition, assets[0].partitions_def))
    every = [asset for one in analyses for asset in one.assets]
    return dg.Definitions(assets=every, jobs=jobs, schedules=schedules, executor=sandboxed_executor)


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
