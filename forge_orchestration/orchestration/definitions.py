"""All of Forge's Dagster definitions, made from settings, analyses and runtimes when this is loaded."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import dagster as dg

from forge_orchestration.analyses import analysis_folders, read_definition, with_rules
from forge_orchestration.analyses.stages import stages_of, whole_of
from forge_orchestration.errors import ForgeError, SpecError
from forge_orchestration.executors.registry import executor_names
from forge_orchestration.model.spec import AnalysisDefinition
from forge_orchestration.orchestration import full_verification, runtime_repair
from forge_orchestration.orchestration.analysis_assets import assets_of, broken_asset, op_name, upstream_assets, usable_name
from forge_orchestration.orchestration.health import health_definitions
from forge_orchestration.orchestration.launchable import Launchable, launchable
from forge_orchestration.orchestration.reconciliation import reconciliation_definitions
from forge_orchestration.runtimes.catalog import runtime_names
from forge_orchestration.settings import Settings, load_settings

_log = logging.getLogger("dagster.forge")


def build_definitions(settings: Settings) -> dg.Definitions:
    """An asset and a job for each analysis, the health of what they run on, and reconciliation.

    Raises:
        ForgeError: The settings, or a folder of analyses or runtimes, cannot be read, so nothing could run.
    """
    runtimes = runtime_names(settings)
    analyses = launchable(analysis_assets(analysis_folders(settings), settings, runtimes))
    return dg.Definitions.merge(analyses, health_definitions(settings), reconciliation_definitions(settings))


def analysis_assets(folders: dict[str, Path], settings: Settings, runtimes: Sequence[str]) -> list[Launchable]:
    """The assets of each folder, and its definition; one that cannot be used is shown as such, and the others are there all the same."""
    found: list[Launchable] = []
    taken, executors = set(folders), executor_names()
    definitions = {name: one for name, folder in folders.items() if (one := _readable(folder)) is not None}
    for name, folder in folders.items():
        try:
            _check_name(name, folders, definitions)
            definition = definitions.get(name) or read_definition(folder)
            _check_upstream(name, definitions)
            _check_partitions(name, definitions)
            found.append(Launchable(name, assets_of(with_rules(definition, settings), settings, runtimes, executors), definition))
        except (ForgeError, dg.DagsterInvalidDefinitionError) as error:
            told = error if isinstance(error, ForgeError) else SpecError(f"Dagster refuses analysis '{name}': {error}")
            _log.warning("An analysis cannot be used: %s", told)
            shown = usable_name(name, taken - {name} if isinstance(error, ForgeError) else taken)
            taken.add(shown)
            found.append(Launchable(shown, [broken_asset(shown, told)], None))
    return found


def _readable(folder: Path) -> AnalysisDefinition | None:
    try:
        return read_definition(folder)
    except ForgeError:
        return None


def _check_upstream(name: str, definitions: Mapping[str, AnalysisDefinition]) -> None:
    """Refuse an analysis that reads, by way of others, what it makes itself: Dagster would refuse all definitions for it.

    Raises:
        SpecError: Names those.
    """
    seen: list[str] = []
    coming = upstream_assets(definitions[name])
    while coming:
        if (other := whole_of(coming.pop())[0]) == name:
            raise SpecError(f"Analysis '{name}' reads what it makes itself, by way of {', '.join(seen) or 'nothing'}.")
        if other in definitions and other not in seen:
            seen.append(other)
            coming += upstream_assets(definitions[other])


def _check_partitions(name: str, definitions: Mapping[str, AnalysisDefinition]) -> None:
    """Refuse an analysis whose partitions say nothing of which partition of another it reads: Dagster would refuse all definitions.

    Raises:
        SpecError: Names that one.
    """
    own = definitions[name].partitions
    for other in {whole_of(one)[0] for one in upstream_assets(definitions[name])}:
        read = definitions[other].partitions if other in definitions else None
        if read is None:
            continue
        if own is None:
            raise SpecError(f"Analysis '{name}' has no partitions, and reads '{other}', which has some.", "Declare partitions.")
        if (bool(own.keys), own.every) != (bool(read.keys), read.every):
            raise SpecError(f"Analysis '{name}' is not cut into the same partitions as '{other}', which it reads.")


def _check_name(name: str, names: Collection[str], definitions: Mapping[str, AnalysisDefinition]) -> None:
    """Refuse a job or op that would be named as another analysis' op is: Dagster would refuse all definitions for it.

    Raises:
        DagsterInvalidDefinitionError: It would.
    """
    if name in (full_verification.JOB, runtime_repair.JOB):
        raise dg.DagsterInvalidDefinitionError("a job of Forge's own is called so. Rename the folder.")
    own = _ops(name, definitions)
    for other in names:
        theirs = _ops(other, definitions)
        if name in theirs or (other != name and own & theirs):
            raise dg.DagsterInvalidDefinitionError(f"it cannot stand beside '{other}'. Rename one of the two folders.")


def _ops(name: str, definitions: Mapping[str, AnalysisDefinition]) -> set[str]:
    """Names of the ops of an analysis: one, or one a stage."""
    definition = definitions.get(name)
    return {op_name(part.name) for part in stages_of(definition)} if definition is not None else {op_name(name)}


defs = build_definitions(load_settings())
