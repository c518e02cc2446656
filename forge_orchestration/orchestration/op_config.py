"""Op config: what a person may change about one launch, as the launchpad shows it and `-c file.yaml` says it.

The schema is written with Dagster's plain config types, made from an analysis' definition. A `dagster.Config` class
would do worse here: its text and number fields also take `{env: NAME}`, which would carry the control process'
environment into a sandbox, and `null`, which is refused only once the run has started.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, get_args

import dagster as dg
from dagster._config import ConfigScalarKind

from forge_orchestration.analyses import checked_param
from forge_orchestration.analyses.checks import check_count, check_priority
from forge_orchestration.errors import SpecError
from forge_orchestration.model.limits import Limits, check_limits, limits_as_written, updated_limits
from forge_orchestration.model.sections import CachePolicy
from forge_orchestration.model.spec import AnalysisDefinition, Param
from forge_orchestration.orchestration.checked_config import Checked
from forge_orchestration.units import format_bytes, format_seconds

AT_ONCE = "partitions_at_once"
"""How many partitions of one step are executed beside each other: a key of the config of what has partitions."""

MOST_AT_ONCE = 256  # each waits on a thread
_SCALARS = {
    "float": ConfigScalarKind.FLOAT, "int": ConfigScalarKind.INT, "bool": ConfigScalarKind.BOOL, "str": ConfigScalarKind.STRING,
}  # fmt: skip

_CACHE = (
    "An earlier result that was made of the very same: use it, refresh it (run all the same), off (likewise, and keep the new one "
    "from being reused; in YAML in quotes: 'off'), only (run nothing)."
)
_LIMITS: dict[str, tuple[ConfigScalarKind, str]] = {
    "memory": (ConfigScalarKind.STRING, "Memory of all its processes together, files in memory included, such as 2GiB or 500MiB."),
    "cpus": (ConfigScalarKind.FLOAT, "Processor cores, such as 1 or 0.5."),
    "pids": (ConfigScalarKind.INT, "Processes and threads at one moment."),
    "wall_time": (ConfigScalarKind.STRING, "Time from start to the request to end, such as 90s, 30min or 2h."),
    "grace": (ConfigScalarKind.STRING, "Time from the request to end until it is killed, such as 5s."),
    "scratch": (ConfigScalarKind.STRING, "Disk space for scratch, temporary files, outputs and checkpoint together, such as 2GiB."),
    "log": (ConfigScalarKind.STRING, "Kept of standard output, and of standard error; the rest is dropped and counted."),
    "files": (ConfigScalarKind.INT, "Files and folders in scratch, temporary files, outputs and checkpoint together."),
    "open_files": (ConfigScalarKind.INT, "Descriptors that each process may have open."),
}


def config_schema(
    definition: AnalysisDefinition, limits: Limits, maximum: Limits, runtimes: Sequence[str], executors: Sequence[str],
    *, policy: CachePolicy = "use", has_partitions: bool = False,
) -> dict[str, dg.Field]:  # fmt: skip
    """The config of one analysis' op, with a type, a default and a description for each key.

    Args:
        definition: The analysis.
        limits: The limits that hold for this analysis when a launch says nothing.
        maximum: What the deployment allows, for the descriptions.
        runtimes: Names in the catalog; another one is refused before a run starts.
        executors: Names of executors; likewise.
        policy: What holds for an earlier result when a launch says nothing.

    Raises:
        SpecError: The definition names a runtime or an executor that is not there, or a type that has no config type.
    """
    return {
        "runtime": _runtime_choice(definition, runtimes),
        "executor": _choice("ForgeExecutor", executors, definition.executor, "Where to run.", "executor"),
        "threads": dg.Field(
            Checked("ForgeThreads", ConfigScalarKind.INT, partial(check_count, "threads", least=1)),
            default_value=definition.threads,
            description="Threads of numerical libraries. Another number can change floating-point results.",
        ),
        "seed": dg.Field(
            Checked("ForgeSeed", ConfigScalarKind.INT, partial(check_count, "seed", least=0)),
            default_value=definition.seed,
            description="Seed of the random numbers.",
        ),
        "priority": dg.Field(
            Checked("ForgePriority", ConfigScalarKind.INT, check_priority),
            default_value=definition.priority,
            description="Of executions that wait for room on the host, the highest is first. From -1000 to 1000.",
        ),
        "cache": _choice("ForgeCache", get_args(CachePolicy), policy, _CACHE, "policy"),
        "params": dg.Field(
            {name: _param_field(definition.name, name, param) for name, param in definition.params.items()},
            description="Parameters of the analysis.",
        ),
        "limits": dg.Field(
            {
                key: dg.Field(
                    _limit(key, maximum),
                    default_value=value,
                    description=f"{_LIMITS[key][1]} At most {in_units(field, getattr(maximum, field))} here.",
                )
                for field, (key, value) in zip(Limits.__struct_fields__, limits_as_written(limits).items(), strict=True)
            },
            description="Hard limits on the whole process tree, enforced by the kernel.",
        ),
        **({AT_ONCE: _at_once()} if has_partitions else {}),
    }


def _at_once() -> dg.Field:
    description = "Partitions of one run at one time. Executions that do not fit on the host wait, however many there are."

    def check(value: object) -> None:
        if check_count(AT_ONCE, value, 1) > MOST_AT_ONCE:
            raise SpecError(f"'{AT_ONCE}' is {value}; it must be at most {MOST_AT_ONCE}.")

    number = Checked("ForgePartitionsAtOnce", ConfigScalarKind.INT, check)
    return dg.Field(number, default_value=min(os.cpu_count() or 1, MOST_AT_ONCE), description=description)


def _limit(key: str, maximum: Limits) -> Checked:
    """One limit, from the least with which anything runs to what the deployment allows."""

    def check(value: object) -> None:
        # against the deployment's own: all others are as it allows
        check_limits(updated_limits(maximum, {key: value}, "the op config"), maximum)

    return Checked(f"ForgeLimit_{key}", _LIMITS[key][0], check)


def _runtime_choice(definition: AnalysisDefinition, runtimes: Sequence[str]) -> dg.Field:
    """The names in the catalog; and, where an analysis asks for one build of a runtime (`NAME@BUILD`), that one too."""
    type_name = "ForgeRuntime"
    if definition.runtime.partition("@")[0] in runtimes and definition.runtime not in runtimes:
        type_name, runtimes = f"ForgeRuntime_{definition.name.replace('.', '__')}", [*runtimes, definition.runtime]
    return _choice(type_name, runtimes, definition.runtime, "Software environment to run in.", "runtime")


def _choice(type_name: str, names: Sequence[str], default: str, description: str, what: str) -> dg.Field:
    if default not in names:
        raise SpecError(f"There is no {what} '{default}'.", f"There are: {', '.join(names) or 'none'}.")
    return dg.Field(dg.Enum(type_name, [dg.EnumValue(name) for name in names]), default_value=default, description=description)


def _param_field(analysis: str, name: str, param: Param) -> dg.Field:
    kind = _SCALARS.get(param.type)
    if kind is None:
        raise SpecError(f"Parameter '{name}' of {analysis} has the type '{param.type}'.", f"Types: {', '.join(_SCALARS)}.")
    type_name = f"Forge_{len(analysis)}_{analysis.replace('.', '__')}_{name}"  # with the length no two are called the same
    scalar: Any = Checked(type_name, kind, partial(checked_param, name, param, where="the op config"))
    if param.type == "str" and param.choices:
        scalar = dg.Enum(type_name, [dg.EnumValue(str(choice)) for choice in dict.fromkeys(param.choices)])
    if param.default is None:
        return dg.Field(scalar, is_required=True, description=describe_param(param))
    return dg.Field(scalar, default_value=param.default, description=describe_param(param))


def in_units(field: str, value: float) -> str:
    """A value as people read it, by the unit in its field's name: `memory_bytes`, 2147483648 → `2.0 GiB`."""
    if field.endswith("_bytes"):
        return format_bytes(value)
    return format_seconds(value) if field.endswith("_s") else f"{value:g}"


def describe_param(param: Param) -> str:
    """What a parameter means, and the values that it may take: `Leiden resolution. From 0.1 to 5.`"""
    text = param.description.rstrip(". ")
    sentences = [text] if text else []
    if param.choices:
        sentences.append(f"One of {', '.join(map(str, param.choices))}")
    if param.min is not None and param.max is not None:
        sentences.append(f"From {param.min:g} to {param.max:g}")
    elif param.min is not None:
        sentences.append(f"At least {param.min:g}")
    elif param.max is not None:
        sentences.append(f"At most {param.max:g}")
    return "".join(f"{sentence}. " for sentence in sentences).rstrip()


def spec_arguments(config: Mapping[str, Any], definition: AnalysisDefinition) -> dict[str, Any]:
    """A launch's config as arguments for `spec_from_definition`.

    Dagster fills in every default and the launchpad writes them out, so a runtime or executor that equals the default
    is nobody's choice: left out here, the record goes on saying that the analysis decided. Limits are passed on whole:
    what the launchpad shows is what is enforced, in whichever runtime.
    """
    changed = {key: config[key] for key in ("runtime", "executor") if config[key] != getattr(definition, key)}
    return changed | {key: config[key] for key in ("threads", "seed", "priority", "cache", "params", "limits")}
