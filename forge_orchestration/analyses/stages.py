"""Analyses in stages: each stage is an analysis of its own, called `ANALYSIS.STAGE`, that reads what others have made.

So each has its own record, limits and runtime, is reused and gone on with by itself, and is an asset of its own in Dagster.
"""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

import msgspec

from forge_orchestration.errors import SpecError
from forge_orchestration.executions.upstream import ASSET, analysis_of
from forge_orchestration.model.spec import AnalysisDefinition, InputSource, Stage

STAGE = "stage://"
"""How a stage names an output of another stage of its analysis: `stage://STAGE/OUTPUT`."""


def whole_of(name: str) -> tuple[str, str]:
    """The analysis and the stage that a name stands for; the stage is empty if it has none."""
    analysis, _, stage = name.partition(".")
    return analysis, stage


def stages_of(definition: AnalysisDefinition) -> list[AnalysisDefinition]:
    """The stages of an analysis, each behind those that it reads; or the analysis itself, if it has none."""
    if not definition.stages:
        return [definition]
    return [_as_analysis(definition, name) for name in _in_order(definition.stages)]


def stage_of(definition: AnalysisDefinition, stage: str) -> AnalysisDefinition:
    """One stage of an analysis.

    Raises:
        SpecError: It has no such stage.
    """
    if stage not in definition.stages:
        known = ", ".join(definition.stages) or "none"
        raise SpecError(f"Analysis '{definition.name}' has no stage '{stage[:80]}'.", f"Its stages: {known}.")
    return _as_analysis(definition, stage)


def check_stages(definition: AnalysisDefinition, path: str) -> None:
    """Refuse stages that do not fit together.

    Raises:
        SpecError: Names them.
    """
    owners: dict[str, str] = {}
    for name, stage in definition.stages.items():
        for output in stage.outputs:
            if (other := owners.setdefault(output, name)) != name:
                raise SpecError(
                    f"Output '{output}' in {path} is claimed by the stages '{other}' and '{name}'.", "Name one of them otherwise."
                )
        for one in stage.params or ():
            if one not in definition.params:
                known = ", ".join(definition.params) or "none"
                raise SpecError(f"Stage '{name}' in {path} uses a parameter '{one}', which is not declared.", f"Declared: {known}.")
        for label, source in stage.inputs.items():
            if whole_of(analysis_of(source.path))[0] == definition.name:
                raise SpecError(
                    f"Input '{label}' of stage '{name}' in {path} is {source.path}, of the analysis itself.",
                    f"Write {STAGE}STAGE/OUTPUT.",
                )
            if source.path.startswith(STAGE):
                _check_edge(name, label, source.path, definition, path)
    _in_order(definition.stages, path)


def _check_edge(name: str, label: str, source: str, definition: AnalysisDefinition, path: str) -> None:
    other, _, output = source.removeprefix(STAGE).partition("/")
    if other not in definition.stages:
        known = ", ".join(definition.stages)
        raise SpecError(
            f"Input '{label}' of stage '{name}' in {path} is of stage '{other}', which there is not.", f"The stages: {known}."
        )
    if output not in definition.stages[other].outputs:
        known = ", ".join(definition.stages[other].outputs) or "none"
        raise SpecError(
            f"Input '{label}' of stage '{name}' in {path} is output '{output}' of stage '{other}', which has none such.",
            f"It has: {known}.",
        )


def _in_order(stages: dict[str, Stage], path: str = "analysis.yaml") -> Iterable[str]:
    edges = {
        name: [
            source.path.removeprefix(STAGE).partition("/")[0] for source in stage.inputs.values() if source.path.startswith(STAGE)
        ]
        for name, stage in stages.items()
    }
    try:
        return list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        raise SpecError(f"The stages in {path} wait for one another in a circle: {' → '.join(error.args[1])}.") from error


def _as_analysis(definition: AnalysisDefinition, name: str) -> AnalysisDefinition:
    stage = definition.stages[name]
    params = definition.params if stage.params is None else {one: definition.params[one] for one in stage.params}
    inputs = {
        label: InputSource(path=f"{ASSET}{definition.name}.{source.path.removeprefix(STAGE)}", description=source.description)
        if source.path.startswith(STAGE)
        else source
        for label, source in stage.inputs.items()
    }
    publish = {label: one for label, one in definition.publish.items() if one.output in stage.outputs}
    return msgspec.structs.replace(
        definition, name=f"{definition.name}.{name}", command=stage.command, stages={}, description=stage.description or definition.description,
        runtime=stage.runtime or definition.runtime, runtime_chosen_by="analysis" if stage.runtime else definition.runtime_chosen_by,
        inputs=inputs, outputs=stage.outputs, checks=stage.checks, publish=publish, params=params, files=stage.files, limits=definition.limits | stage.limits,
        env=definition.env | stage.env, threads=definition.threads if stage.threads is None else stage.threads, schedule="",
    )  # fmt: skip
