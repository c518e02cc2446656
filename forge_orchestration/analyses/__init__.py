"""The analyses that ship, a folder each, and the reading of `analysis.yaml` wherever it lies."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from forge_orchestration.analyses.checks import (
    check_cache,
    check_command,
    check_count,
    check_environment,
    check_output_pattern,
    check_priority,
    check_source,
)  # fmt: skip
from forge_orchestration.analyses.partitions import check_partitions, checked_partition, partition_path
from forge_orchestration.analyses.publications import check_publications
from forge_orchestration.analyses.stages import check_stages, stage_of, stages_of, whole_of
from forge_orchestration.errors import RuntimeCatalogError, SpecError
from forge_orchestration.executions.downloads import as_source
from forge_orchestration.executions.inputs import check_input_name
from forge_orchestration.executions.snapshots import snapshot_of
from forge_orchestration.model.cron import check_cron
from forge_orchestration.model.limits import Limits, check_limits, updated_limits
from forge_orchestration.model.spec import DEFAULT_EXECUTOR, AnalysisDefinition, AnalysisSpec, InputSource, Param, ParamValue
from forge_orchestration.sandbox.view import ANALYSIS
from forge_orchestration.settings import Settings

_MAX_DIGITS = 400
SHIPPED = Path(__file__).parent
# also the names of Dagster assets and jobs, which allow no more than this
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
# what makes the same program write other bytes: the order of Python's sets, dates in files, how many threads share a sum
_FIXED = {
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "315532800",
    "OMP_DYNAMIC": "FALSE",
    "MKL_DYNAMIC": "FALSE",
    "MKL_CBWR": "COMPATIBLE",
}
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def analysis_folders(settings: Settings) -> dict[str, Path]:
    """Folder by name of every analysis, those that ship and those of the deployment.

    Raises:
        SpecError: Two have one name, or a configured folder cannot be read.
    """
    found: dict[str, Path] = {}
    for parent in (SHIPPED, *settings.analysis_folders):
        try:
            names = sorted(os.listdir(parent))
        except OSError as error:
            raise SpecError(
                f"The analysis folder {parent} cannot be read: {error.strerror}.", "See analysis_folders in settings.toml."
            ) from error
        for name in names:
            if os.path.isfile(f"{parent}/{name}/analysis.yaml"):
                if name in found:
                    raise SpecError(f"Two analyses are called '{name}': {found[name]} and {parent / name}.")
                found[name] = parent / name
    return found


def load_definition(name: str, settings: Settings) -> AnalysisDefinition:
    """The analysis called `name`, or in the folder that `name` is a path of.

    Raises:
        SpecError: There is none, or its `analysis.yaml` is wrong.
    """
    if "/" in name or name in (".", ".."):
        return with_rules(read_definition(Path(name)), settings)
    folders = analysis_folders(settings)
    whole, stage = whole_of(name)
    if whole not in folders:
        raise SpecError(f"There is no analysis '{name[:80]}'.", f"The analyses are: {', '.join(sorted(folders))}.")
    definition = with_rules(read_definition(folders[whole]), settings)
    return stage_of(definition, stage) if stage else definition


def load_definitions(settings: Settings) -> dict[str, AnalysisDefinition]:
    """Every analysis by name.

    Raises:
        SpecError: One of them is wrong.
    """
    return {name: with_rules(read_definition(folder), settings) for name, folder in analysis_folders(settings).items()}


def read_definition(folder: Path) -> AnalysisDefinition:
    """Read and check the `analysis.yaml` in `folder`.

    Raises:
        SpecError: One sentence: the file, the key, and what it should be.
    """
    folder = Path(os.path.abspath(folder))
    path = folder / "analysis.yaml"
    try:
        if not path.is_file() and (component := _component(folder / "defs.yaml")) is not None:
            return definition_from(component, folder, folder / "defs.yaml")
        raw = _load_yaml(path)
    except FileNotFoundError:
        raise SpecError(f"There is no analysis in {folder}: it has no analysis.yaml.") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:  # YAML's errors are ValueErrors here
        raise SpecError(f"{path} is wrong: {' '.join(str(error).split())}.") from error
    return definition_from(raw, folder, path)


def _component(path: Path) -> object:
    """The attributes of a Dagster component that is an analysis; None if there is none."""
    try:
        raw = _load_yaml(path)
    except FileNotFoundError:
        return None
    is_ours = isinstance(raw, dict) and raw.get("type") == "forge_orchestration.Analysis"
    return raw.get("attributes") if is_ours and isinstance(raw, dict) else None


def definition_from(raw: object, folder: Path, path: Path) -> AnalysisDefinition:
    """The analysis in `folder` that `raw`, read from the file at `path`, describes.

    Raises:
        SpecError: One sentence: the file, the key, and what it should be.
    """
    try:
        if not isinstance(raw, dict):
            raise ValueError("it must be a mapping of keys")
        for key in ("name", "folder", "files", "function", "runtime_chosen_by", "executor_chosen_by"):  # not a person's to write
            if key in raw:
                raise ValueError(f"Object contains unknown field `{key}`")
        if raw.get("cache") is False:
            raw = raw | {"cache": "off"}  # as YAML reads the word without quotes
        chosen_by = {f"{key}_chosen_by": "analysis" if key in raw else "default" for key in ("runtime", "executor")}
        own = {"name": folder.name, "folder": str(folder), **chosen_by}
        definition = msgspec.convert(raw | own, AnalysisDefinition)
    except ValueError as error:  # msgspec's errors are ValueErrors
        raise SpecError(f"{path} is wrong: {' '.join(str(error).split())}.") from error
    check_definition(definition, str(path))
    return definition


def with_rules(definition: AnalysisDefinition, settings: Settings) -> AnalysisDefinition:
    """The definition with its runtime and executor: its own, or those of the first rules of the settings that pick it."""
    if definition.runtime_chosen_by == "default":
        for rule in settings.runtime_rules:
            if rule.picks(definition.group, definition.tags):
                definition = msgspec.structs.replace(definition, runtime=rule.runtime, runtime_chosen_by=f"rule: {rule}")
                break
    if definition.executor_chosen_by != "analysis" and settings.executor_rules:  # of a stage with its own limits, once more
        limits = settings.defaults
        with contextlib.suppress(RuntimeCatalogError):  # whoever runs it is told
            limits = effective_limits(definition, settings, definition.runtime)
        executor, chosen_by = executor_by_rule(settings, limits, definition.group, definition.tags)
        definition = msgspec.structs.replace(definition, executor=executor, executor_chosen_by=chosen_by)
    return definition


def executor_by_rule(settings: Settings, limits: Limits, group: str = "", tags: tuple[str, ...] = ()) -> tuple[str, str]:
    """Where something runs for which nobody has said it, and who decides that."""
    for rule in settings.executor_rules:
        if rule.picks(group, tags, limits.memory_bytes):
            return rule.executor, f"rule: {rule}"
    return DEFAULT_EXECUTOR, "default"


def _load_yaml(path: Path) -> object:
    return _parsed(path.read_text("utf-8"))


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> object:
    """Each text is parsed once a process; callers do not change the answer."""
    import yaml

    try:
        # the parser in C is some ten times as fast; a PyYAML that was built without it has only the other
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 -- both are safe
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def check_definition(content: AnalysisDefinition, path: str) -> None:
    """Refuse what can never be run.

    Args:
        path: Where it is written.

    Raises:
        SpecError: One sentence: where, what, and what it should be.
    """
    _check_name(content.name, "an analysis'")
    if content.stages:
        _check_staged(content, path)
    else:
        _check_content(content, path)


def _check_name(name: str, whose: str) -> None:
    if not _NAME.fullmatch(name):
        raise SpecError(f"'{name}' cannot be {whose} name.", "Name it with letters, digits and '_', a letter first.")


def _check_content(content: AnalysisDefinition, path: str) -> None:
    check_command(content.command, path)
    if not all(content.command):
        raise SpecError(f"The command in {path} has an empty word.", "Write it as a list: [python, script.py].")
    for name, source in content.inputs.items():
        check_input_name(name, path)
        check_source(name, source, path)
    for name, param in content.params.items():
        if param.type not in _TYPES:
            raise SpecError(f"Parameter '{name}' in {path} has type '{param.type}'.", f"The types are: {', '.join(_TYPES)}.")
        if param.default is not None:
            checked_param(name, param, param.default, path)
    check_environment(content.env, path)
    check_count("threads", content.threads, 1)
    check_count("seed", content.seed, 0)
    check_priority(content.priority)
    if content.partitions is not None:
        check_partitions(content.partitions, path)
    if content.schedule:
        try:
            check_cron(content.schedule)
        except ValueError as error:
            raise SpecError(f"'schedule' in {path} cannot be understood: {error}.") from error
        if open_params := [name for name, param in content.params.items() if param.default is None]:
            raise SpecError(f"'schedule' in {path} needs a default for parameter '{open_params[0]}': nobody is there to give it.")
        if content.partitions is not None and not content.partitions.every:
            raise SpecError(
                f"'schedule' in {path} cannot know which partition is meant.",
                "Leave it out, or cut the analysis into windows of time.",
            )
    check_count("retry_with_more: attempts", content.retry_with_more.attempts, 1)
    if not 1 < content.retry_with_more.factor <= 100:
        raise SpecError(
            f"'retry_with_more: factor' in {path} is {content.retry_with_more.factor:g}; it must be more than 1, at most 100."
        )
    for name in content.checks:
        if not _NAME.fullmatch(name):
            raise SpecError(
                f"'{name[:80]}' in {path} cannot be a check's name.", "Name it with letters, digits and '_', a letter first."
            )
    for name, pattern in content.outputs.items():
        check_output_pattern(pattern, f"output '{name}' in {path}")
    check_publications(content.publish, content.outputs, path)
    updated_limits(Limits(), content.limits, path)


def _check_staged(content: AnalysisDefinition, path: str) -> None:
    for key in ("command", "inputs", "outputs", "checks"):
        if getattr(content, key):
            raise SpecError(f"'{key}' in {path} stands beside 'stages'.", "Each stage has its own.")
    for name in content.stages:
        _check_name(name, "a stage's")
    check_stages(content, path)
    check_publications(
        content.publish, {name: one for stage in content.stages.values() for name, one in stage.outputs.items()}, path
    )
    for part in stages_of(content):
        _check_content(part, f"stage '{whole_of(part.name)[1]}' of {path}")
    _check_content(
        msgspec.structs.replace(content, stages={}, publish={}, command=("true",)), path
    )  # what no stage has: its schedule


def checked_param(name: str, param: Param, value: object, where: str) -> ParamValue:
    """`value` as the parameter's type, from text too, as the command line gives it.

    Raises:
        SpecError: The wrong type, or out of bounds.
    """
    what = f"Parameter '{name}' in {where} is {_shown(value)}"
    kinds = _TYPES[param.type]
    converted: object = value
    if isinstance(value, str) and param.type != "str":
        try:
            if len(value) > _MAX_DIGITS:
                raise ValueError
            converted = {"true": True, "false": False}[value.lower()] if param.type == "bool" else kinds[-1](value)
        except (KeyError, ValueError):
            raise SpecError(f"{what}; it must be of type {param.type}.") from None
    if not isinstance(converted, kinds) or (isinstance(converted, bool) and param.type != "bool"):
        raise SpecError(f"{what}; it must be of type {param.type}.")
    if param.type == "float" and isinstance(converted, (int, float)):
        try:
            converted = float(converted)
        except OverflowError:
            converted = math.inf
        if not math.isfinite(converted):
            raise SpecError(f"{what}; it must be a finite number.")
    if param.choices is not None and converted not in param.choices:
        raise SpecError(f"{what}; it must be one of {', '.join(map(str, param.choices))}.")
    if isinstance(converted, (int, float)) and not isinstance(converted, bool):
        low, high = param.min, param.max
        if (low is not None and converted < low) or (high is not None and converted > high):
            raise SpecError(
                f"{what}; it must lie between {low if low is not None else '-∞'} and {high if high is not None else '∞'}."
            )
    return converted  # type: ignore[return-value]


def effective_limits(definition: AnalysisDefinition, settings: Settings, runtime: str) -> Limits:
    """The limits of a launch that says nothing: the deployment's, then the runtime's, then the analysis' own.

    They may be more than the deployment allows: a launch can ask for less.

    Raises:
        RuntimeCatalogError: The runtime is unknown.
    """
    from forge_orchestration.runtimes.catalog import load_definition as load_runtime

    limits = updated_limits(settings.defaults, load_runtime(runtime, settings).limits, f"runtime '{runtime}'")
    return updated_limits(limits, definition.limits, f"{definition.folder}/analysis.yaml")


def spec_from_definition(
    definition: AnalysisDefinition,
    settings: Settings,
    *,
    runtime: str | None = None,
    executor: str | None = None,
    limits: Mapping[str, object] | None = None,
    params: Mapping[str, object] | None = None,
    inputs: Mapping[str, str] | None = None,
    partition: str | None = None,
    threads: int | None = None,
    seed: int | None = None,
    priority: int | None = None,
    cache: str | None = None,
    asked_by: str = "op config",
    dagster_run_id: str | None = None,
    dagster_step_key: str | None = None,
) -> AnalysisSpec:
    """One request to run `definition`, with what `asked_by` changes of it.

    Limits come from the deployment's defaults, then the runtime, the analysis, and `limits`.

    Raises:
        SpecError: An unknown parameter, input or partition, a value of the wrong type or out of bounds.
        RuntimeCatalogError: The runtime is unknown.
    """
    partition = checked_partition(definition, partition)
    runtime_chosen_by = asked_by if runtime is not None else definition.runtime_chosen_by
    runtime = runtime or definition.runtime
    effective = effective_limits(definition, settings, runtime)
    effective = updated_limits(effective, limits or {}, f"the {asked_by}")
    check_limits(effective, settings.maximum)
    executor_chosen_by = asked_by
    if executor is None:
        executor, executor_chosen_by = definition.executor, definition.executor_chosen_by
        if executor_chosen_by != "analysis":  # with the limits that hold now
            executor, executor_chosen_by = executor_by_rule(settings, effective, definition.group, definition.tags)
    chosen = {"runtime": runtime_chosen_by, "executor": executor_chosen_by}
    values: dict[str, ParamValue] = {name: param.default for name, param in definition.params.items() if param.default is not None}
    for name, value in (params or {}).items():
        if name not in definition.params:
            known = ", ".join(definition.params) or "none"
            raise SpecError(f"Analysis '{definition.name}' has no parameter '{name[:80]}'.", f"Its parameters: {known}.")
        values[name] = checked_param(name, definition.params[name], value, f"the {asked_by}")
    for name in definition.params:
        if name not in values:
            raise SpecError(f"Parameter '{name}' of analysis '{definition.name}' has no default: give it a value.")
    sources = {name: _source_of(one) for name, one in definition.inputs.items()}
    for name, path in (inputs or {}).items():
        if name not in sources:
            raise SpecError(
                f"Analysis '{definition.name}' has no input '{name[:80]}'.", f"Its inputs: {', '.join(sources) or 'none'}."
            )
        sources[name] = path
    # a path in analysis.yaml is relative to its folder
    sources = {
        name: partition_path(path, partition, name)
        if "://" in path or path.startswith(("/", "~")) or (inputs and name in inputs)
        else os.path.join(definition.folder, partition_path(path, partition, name))
        for name, path in sources.items()
    }
    return AnalysisSpec(
        name=definition.name,
        command=tuple(_inside(word, definition.folder) for word in definition.command),
        folder=definition.folder,
        files=definition.files,
        function=definition.function,
        group=definition.group,
        tags=definition.tags,
        runtime=runtime,
        executor=executor,
        inputs=sources,
        outputs=definition.outputs,
        checks=tuple(definition.checks),
        publish=definition.publish,
        partition=partition,
        params=values,
        limits=effective,
        retry_with_more=definition.retry_with_more,
        env=_FIXED | definition.env if definition.deterministic else definition.env,
        threads=check_count("threads", threads if threads is not None else definition.threads, 1),
        seed=check_count("seed", seed if seed is not None else definition.seed, 0),
        priority=check_priority(priority if priority is not None else definition.priority),
        cache=check_cache(cache or definition.cache or settings.reuse.policy),
        chosen_by=chosen,
        dagster_run_id=dagster_run_id,
        dagster_step_key=dagster_step_key,
    )


def _source_of(one: InputSource) -> str:
    if one.database:
        return snapshot_of(one.database, one.query)
    return as_source(one.url, one.sha256) if one.url else one.path


def specs_from_definition(
    definition: AnalysisDefinition, settings: Settings, *, stage: str | None = None, params: Mapping[str, object] | None = None,
    inputs: Mapping[str, str] | None = None, **asked: Any,
) -> list[AnalysisSpec]:  # fmt: skip
    """A request for each stage of `definition`, in their order, or for one of them; of what has no stages one alone.

    Each stage gets those of `params` and `inputs` that it has. Other arguments as those of `spec_from_definition`.

    Raises:
        SpecError: As there; no stage has such a parameter or input; a runtime is given for several stages.
    """
    parts = [stage_of(definition, stage)] if stage is not None else stages_of(definition)
    if len(parts) > 1 and asked.get("runtime") is not None:
        raise SpecError(
            f"Analysis '{definition.name}' has stages, and it is not said which of them the runtime is for.", "Name one stage."
        )
    # what no stage has, the first refuses
    known_params, known_inputs = {name for part in parts for name in part.params}, {name for part in parts for name in part.inputs}
    return [
        spec_from_definition(
            part, settings, **asked,
            params={name: value for name, value in (params or {}).items() if name in part.params or name not in known_params},
            inputs={name: value for name, value in (inputs or {}).items() if name in part.inputs or name not in known_inputs},
        )
        for part in parts
    ]  # fmt: skip


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python writes no integer of more than some thousand digits
        return "a number of very many digits"


def _inside(word: str, folder: str) -> str:
    """A word of the command that names a file of the analysis, as the sandbox sees it."""
    path = os.path.normpath(word)
    if os.path.isabs(path) or path.startswith("..") or not os.path.isfile(os.path.join(folder, path)):
        return word
    return f"{ANALYSIS}/{path}"
