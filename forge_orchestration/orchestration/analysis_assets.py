"""The one factory: an analysis folder becomes an asset.

The step itself stays light: it waits for an execution that has its own processes, limits and supervisor.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._utils.schedules import is_valid_cron_schedule

from forge_orchestration.analyses import effective_limits, with_rules
from forge_orchestration.analyses.stages import stages_of, whole_of
from forge_orchestration.errors import ForgeError, SpecError
from forge_orchestration.executions.messages import printable
from forge_orchestration.executions.upstream import analysis_of
from forge_orchestration.model.limits import check_limits, limits_as_written
from forge_orchestration.model.spec import AnalysisDefinition
from forge_orchestration.orchestration.op_config import config_schema, describe_param
from forge_orchestration.orchestration.partitions import backfill_policy, materialize_partitions, partitions_definition
from forge_orchestration.orchestration.step import failure_of, materialize
from forge_orchestration.orchestration.trust import runs_in_sandbox
from forge_orchestration.settings import Settings

EXECUTOR_TAG = "forge/executor"


def assets_of(
    definition: AnalysisDefinition, settings: Settings, runtimes: Sequence[str], executors: Sequence[str]
) -> list[dg.AssetsDefinition]:
    """The assets of one analysis: one, or one a stage.

    Raises:
        ForgeError: As for `analysis_asset`.
    """
    if definition.schedule and not is_valid_cron_schedule(definition.schedule):
        raise SpecError(f"'schedule: {definition.schedule}' of '{definition.name}' is no time that ever comes.", "Correct it.")
    return [analysis_asset(with_rules(part, settings), settings, runtimes, executors) for part in stages_of(definition)]


def analysis_asset(
    definition: AnalysisDefinition, settings: Settings, runtimes: Sequence[str], executors: Sequence[str],
    partitions_def: dg.PartitionsDefinition[str] | None = None,
) -> dg.AssetsDefinition:  # fmt: skip
    """The asset of one analysis.

    Args:
        partitions_def: Its partitions, where they are Dagster's own and not in the definition.

    Raises:
        ForgeError: The definition cannot become a runnable asset; the sentence says why.
    """
    if definition.partitions is not None:
        partitions_def = partitions_definition(definition.partitions)
    schema = schema_of(definition, settings, runtimes, executors, has_partitions=partitions_def is not None)

    def run(context: dg.AssetExecutionContext) -> Iterator[Any]:
        if partitions_def is None:
            yield materialize(context, definition, settings)
        else:
            yield from materialize_partitions(context, definition, settings)

    return _asset(
        definition.name,
        run,
        partitions_def=partitions_def,
        checks=definition.checks,
        policy=backfill_policy(definition.partitions) if partitions_def is not None else None,
        group=definition.group,
        description=described(definition, settings),
        kinds={"forge", _safe(definition.command[0].rsplit("/", 1)[-1])},
        tags={"forge/runtime": definition.runtime} | {_safe(tag): "" for tag in definition.tags},
        schema=schema,
        executor=definition.executor,
        deps=upstream_assets(definition),
    )


def schema_of(
    definition: AnalysisDefinition, settings: Settings, runtimes: Sequence[str], executors: Sequence[str],
    *, has_partitions: bool = False,
) -> dict[str, dg.Field]:  # fmt: skip
    """The config of an analysis' op.

    Raises:
        ForgeError: The definition cannot become a runnable op; the sentence says why.
    """
    limits = effective_limits(definition, settings, definition.runtime)
    check_limits(limits, settings.maximum)
    policy = definition.cache or settings.reuse.policy
    return config_schema(definition, limits, settings.maximum, runtimes, executors, policy=policy, has_partitions=has_partitions)


def upstream_assets(definition: AnalysisDefinition) -> list[str]:
    """Names of the analyses, and stages of analyses, whose outputs it reads; of its own stages it says nothing."""
    sources = [source.path for part in stages_of(definition) for source in part.inputs.values()]
    names = dict.fromkeys(name for source in sources if (name := analysis_of(source)))
    return [name for name in names if not definition.stages or whole_of(name)[0] != definition.name]


def broken_asset(name: str, error: ForgeError) -> dg.AssetsDefinition:
    """In the place of an analysis that cannot be used: it says why, and fails with the same words when launched."""

    def run(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        raise failure_of(error)

    description = f"**This analysis cannot be used.** {printable(str(error))}"
    return _asset(name, run, group="broken", description=description, kinds={"forge", "broken"}, tags={}, schema={})


def _asset(
    name: str,
    run: Callable[[dg.AssetExecutionContext], Any],
    *,
    group: str,
    description: str,
    kinds: set[str],
    tags: dict[str, str],
    schema: dict[str, dg.Field],
    executor: str | None = None,
    deps: Sequence[str] = (),
    partitions_def: dg.PartitionsDefinition[str] | None = None,
    policy: dg.BackfillPolicy | None = None,
    checks: Mapping[str, str] | None = None,
) -> dg.AssetsDefinition:
    key = dg.AssetKey(key_path(name))
    spec = dg.AssetSpec(
        key,
        deps=[dg.AssetKey(key_path(one)) for one in deps],
        group_name=_safe(group),
        description=description,
        kinds=kinds,
        tags=tags,
        partitions_def=partitions_def,
    )
    specs = [dg.AssetCheckSpec(check, asset=key, description=expects or None) for check, expects in (checks or {}).items()]
    decorate = dg.multi_asset(
        check_specs=specs,
        name=op_name(name), specs=[spec], description=description, config_schema=schema, partitions_def=partitions_def,
        backfill_policy=policy, op_tags=executor_tags(executor) if executor else None, pool=executor_pool(executor) if executor else None,
    )  # fmt: skip
    return decorate(runs_in_sandbox(run))


def executor_tags(executor: str) -> dict[str, str]:
    """Of an op that runs there unless a launch says otherwise: what limits within a run may be set for."""
    return {EXECUTOR_TAG: executor}


def executor_pool(executor: str) -> str:
    """The pool of such an op: what a limit for all runs may be set for."""
    return f"forge_{_safe(executor)}"


def op_name(analysis: str) -> str:
    """The op of an analysis: `run_` and its name. In Dagster no op is named as a job is, and the job comes first."""
    return f"run_{analysis.replace('.', '__')}"


def key_path(analysis: str) -> list[str]:
    """The key of an analysis' asset: its name, and that of the stage."""
    return analysis.split(".")


def usable_name(name: str, taken: Collection[str]) -> str:
    """A name that Dagster accepts and nobody else has, as close to any folder's name as possible."""
    usable = _safe(name).strip("_") or "analysis"
    while usable in taken:
        usable += "_"
    return usable


def _safe(name: str) -> str:
    """A name that Dagster accepts for a group, a kind or a tag."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)[:60] or "default"


def described(definition: AnalysisDefinition, settings: Settings) -> str:
    """Markdown for its page: what goes in, what comes out, what may be changed."""
    limits = limits_as_written(effective_limits(definition, settings, definition.runtime))
    parts = [definition.description or "(no description)"]
    if definition.inputs:
        rows = {
            name: " ".join(filter(None, [f"`{source.path or source.url or source.database}`", source.description]))
            for name, source in definition.inputs.items()
        }
        parts.append(_rows("Input", "From", rows))
    if definition.outputs:
        parts.append(_rows("Output", "File", {name: f"`{pattern}`" for name, pattern in definition.outputs.items()}))
    if definition.params:
        params = {f"{name} = {param.default}": describe_param(param) for name, param in definition.params.items()}
        parts.append(_rows("Parameter", "Meaning", params))
    parts.append(_rows("Limit", "Default", {key: str(value) for key, value in limits.items()}))
    return "\n\n".join(parts)


def _rows(first: str, second: str, rows: dict[str, str]) -> str:
    lines = [f"| {first} | {second} |", "| --- | --- |"]
    lines += [f"| {_cell(name)} | {_cell(text)} |" for name, text in rows.items()]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
