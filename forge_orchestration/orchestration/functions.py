"""`@forge_asset` and `@forge_op`: a Python function whose body runs in a sandbox, in a runtime that need not have Dagster.

It is never pickled: its file goes into the sandbox, where the runtime's own Python imports it and calls the function by its
name. Here, in the control process, nothing of its body ever runs.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Literal, TypedDict, Unpack, get_args, get_origin, get_type_hints

import dagster as dg
import msgspec

from forge_orchestration.analyses import check_definition, with_rules
from forge_orchestration.analyses.checks import check_cache
from forge_orchestration.errors import SpecError
from forge_orchestration.executions.code import CALLED_BY
from forge_orchestration.executions.upstream import ASSET, EXECUTION
from forge_orchestration.executors.registry import executor_names
from forge_orchestration.model.sections import CachePolicy
from forge_orchestration.model.spec import DEFAULT_EXECUTOR, DEFAULT_RUNTIME, AnalysisDefinition, InputSource, Param, RetryWithMore
from forge_orchestration.orchestration.analysis_assets import analysis_asset, described, executor_pool, executor_tags, schema_of
from forge_orchestration.orchestration.previews import materialization_metadata
from forge_orchestration.orchestration.step import run_analysis
from forge_orchestration.orchestration.trust import runs_in_sandbox
from forge_orchestration.runtimes.catalog import runtime_names
from forge_orchestration.sandbox.view import ANALYSIS
from forge_orchestration.settings import load_settings

RESULT = "result"
"""The output that holds what a function returned."""

_Function = Callable[..., Any]
_TYPES: dict[Any, str] = {
    int: "int",
    float: "float",
    str: "str",
    bool: "bool",
    "int": "int",
    "float": "float",
    "str": "str",
    "bool": "bool",
}


@dataclass(frozen=True)
class ForgeOutput:
    """What a `@forge_op` passes on: a file that was collected. It is read by those ops that are given it, in their sandboxes."""

    execution_id: str
    path: str

    def __str__(self) -> str:
        return f"{EXECUTION}{self.execution_id}/{self.path}"


class Options(TypedDict, total=False):
    """What both decorators take.

    Attributes:
        name: Of the asset or op; the function's own if it is not given.
        runtime: Of the catalog; the deployment's rules choose if it is not given.
        executor: Where it runs; likewise.
        limits: As in `analysis.yaml`: `{"memory": "1GiB"}`.
        retry_with_more: Likewise: `{"attempts": 3, "factor": 2}`.
        tags: By which the deployment's rules may choose a runtime and an executor.
        cache: What is done with an earlier result that was made of the very same: `use`, `refresh`, `off` or `only`.
    """

    name: str
    runtime: str
    executor: str
    limits: Mapping[str, object]
    retry_with_more: Mapping[str, float]
    env: Mapping[str, str]
    tags: Sequence[str]
    threads: int
    seed: int
    priority: int
    cache: CachePolicy


def forge_asset(
    function: _Function | None = None, *, group: str = "default", ins: Mapping[str, str] | None = None,
    partitions_def: dg.PartitionsDefinition[str] | None = None, checks: Mapping[str, str] | None = None, **options: Unpack[Options],
) -> Any:  # fmt: skip
    """An asset whose function runs in a sandbox.

    Positional parameters are other Forge assets by their names; keyword-only ones (`int`, `float`, `str`, `bool` or a `Literal` of
    texts) are parameters of a launch. What it returns is the file `result.*`: a data frame Parquet, an `AnnData` h5ad, an array npy,
    a figure PNG, bytes as they are, the path of a file that file, everything else JSON.

    Args:
        ins: Assets by parameter, where they are called otherwise: `{"cells": "pbmc_clusters/clusters"}` is one output of several.
        partitions_def: Dagster's; each partition has an execution, and its key is in the keyword-only parameter `partition`, if there
            is one.
        checks: What it must report to have passed or failed (see `docs/analyses.md`, Messages): what each expects, by name.
        options: See `Options`.

    Raises:
        SpecError: The function cannot be run so; the sentence says why.
    """
    if function is None:
        return lambda decorated: forge_asset(
            decorated, group=group, ins=ins, partitions_def=partitions_def, checks=checks, **options
        )
    settings = load_settings()
    made = function_definition(
        function, group=group, ins=ins or {}, has_partitions=partitions_def is not None, checks=checks or {}, **options
    )
    return analysis_asset(with_rules(made, settings), settings, runtime_names(settings), executor_names(), partitions_def)


def forge_op(function: _Function | None = None, **options: Unpack[Options]) -> Any:
    """An op whose function runs in a sandbox; as `forge_asset`, but positional parameters are what other Forge ops returned.

    Raises:
        SpecError: The function cannot be run so; the sentence says why.
    """
    if function is None:
        return lambda decorated: forge_op(decorated, **options)
    settings = load_settings()
    _check_options(options)
    definition = with_rules(function_definition(function, **options), settings)

    def run(context: dg.OpExecutionContext, **given: Any) -> dg.Output[ForgeOutput]:
        for parameter, value in given.items():
            if not isinstance(value, ForgeOutput):
                raise dg.Failure(
                    f"'{parameter}' of op '{definition.name}' is a {type(value).__name__}, and must be what another Forge op returned. "
                    "Give values as keyword-only parameters.",
                    allow_retries=False,
                )
        record = run_analysis(context, definition, settings, {parameter: str(value) for parameter, value in given.items()})
        results = [output for output in record.outputs if output.name == RESULT]
        if len(results) != 1:
            raise dg.Failure(f"'{definition.name}' has left more than one file {RESULT}.*: {record.folder}.", allow_retries=False)
        value = ForgeOutput(execution_id=record.execution_id, path=results[0].path)
        return dg.Output(value, metadata=materialization_metadata(record))

    # Dagster knows what stands at which place from the signature
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    places = [inspect.Parameter(parameter, kind) for parameter in ("context", *definition.inputs)]
    run.__signature__ = inspect.Signature(places)  # type: ignore[attr-defined]
    return dg.op(
        name=definition.name,
        # what its inputs are Dagster shows itself: no assets
        description=described(msgspec.structs.replace(definition, inputs={}), settings),
        ins={parameter: dg.In(description=source.description or None) for parameter, source in definition.inputs.items()},
        out=dg.Out(ForgeOutput),
        config_schema=schema_of(definition, settings, runtime_names(settings), executor_names()),
        tags=executor_tags(definition.executor),
        pool=executor_pool(definition.executor),
    )(runs_in_sandbox(run))


def function_definition(
    function: _Function, *, group: str = "default", ins: Mapping[str, str] = MappingProxyType({}), has_partitions: bool = False,
    checks: Mapping[str, str] = MappingProxyType({}), **options: Unpack[Options],
) -> AnalysisDefinition:  # fmt: skip
    """The analysis that a function is.

    Raises:
        SpecError: It has no file or no name of its own, or a parameter that cannot be given to it.
    """
    _check_options(options)
    if not inspect.isfunction(function):
        raise SpecError(
            f"{function!r:.80} is no function.", "Decorate a plain function, at the top of a module or in a class there."
        )
    where = f"the function {function.__qualname__} of {function.__module__}"
    folder, module, files = _place(function, where)
    inputs, params = _parameters(function, ins, where)
    if has_partitions:
        params.pop("partition", None)  # it is no parameter of a launch, but what is launched
    definition = AnalysisDefinition(
        name=options.get("name", function.__name__),
        folder=str(folder),
        files=files,
        function=f"{module}:{function.__qualname__}",
        command=("python", f"{ANALYSIS}/{CALLED_BY}", module, function.__qualname__),
        description=_description(function),
        group=group,
        tags=tuple(options.get("tags", ())),
        runtime=options.get("runtime", DEFAULT_RUNTIME),
        runtime_chosen_by="analysis" if "runtime" in options else "default",
        executor=options.get("executor", DEFAULT_EXECUTOR),
        executor_chosen_by="analysis" if "executor" in options else "default",
        inputs=inputs,
        outputs={RESULT: f"{RESULT}.*"},
        params=params,
        checks=_checks(checks, where),
        limits=dict(options.get("limits", {})),
        retry_with_more=_retry(options.get("retry_with_more", {}), where),
        env=dict(options.get("env", {})),
        threads=options.get("threads", 1),
        seed=options.get("seed", 0),
        priority=options.get("priority", 0),
        cache=check_cache(options["cache"]) if "cache" in options else None,
    )
    check_definition(definition, where)
    return definition


def _check_options(options: Mapping[str, object]) -> None:
    if unknown := options.keys() - Options.__annotations__.keys():
        raise SpecError(f"The decorator has no option '{sorted(unknown)[0]}'.", f"It has: {', '.join(Options.__annotations__)}.")


def _checks(wanted: Mapping[str, str], where: str) -> dict[str, str]:
    try:
        return msgspec.convert(wanted, dict[str, str])
    except msgspec.ValidationError as error:
        raise SpecError(f"checks of {where} is wrong: {error}.", 'Write it as {"name": "what is expected"}.') from error


def _retry(wanted: Mapping[str, float], where: str) -> RetryWithMore:
    try:
        return msgspec.convert(dict(wanted), RetryWithMore)
    except msgspec.ValidationError as error:
        raise SpecError(f"retry_with_more of {where} is wrong: {error}.", 'Write it as {"attempts": 3, "factor": 2}.') from error


def _place(function: _Function, where: str) -> tuple[Path, str, tuple[str, ...]]:
    """The folder that is the root of its imports, its module's name from there, and what of the folder goes into the sandbox."""
    if "<" in function.__qualname__:  # <locals>, <lambda>
        raise SpecError(f"A sandbox cannot find {where} by its name.", "Write it at the top of a module, or in a class there.")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise SpecError(f"It is not known what {where} returns.", "Write a plain function that returns its result.")
    try:
        file = Path(inspect.getfile(inspect.unwrap(function))).resolve(strict=True)
    except (OSError, TypeError) as error:
        raise SpecError(f"There is no file of {where}: a sandbox could not read it.", "Write it in a module.") from error
    top, words = file.parent, [] if file.name == "__init__.py" else [file.stem]
    while (top / "__init__.py").is_file():
        words.insert(0, top.name)
        top = top.parent
    return top, ".".join(words), (words[0] if len(words) > 1 or file.name == "__init__.py" else file.name,)


def _parameters(function: _Function, ins: Mapping[str, str], where: str) -> tuple[dict[str, InputSource], dict[str, Param]]:
    inputs, params = {}, {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "context":
            raise SpecError(f"{where.capitalize()} wants a context: in a sandbox there is nothing of Dagster.", "Leave it out.")
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            params[name] = _param(parameter, function, where)
        elif parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and parameter.default is inspect.Parameter.empty:
            inputs[name] = InputSource(path=ASSET + ins.get(name, name), description=_type_name(parameter.annotation))
        else:
            raise SpecError(
                f"Parameter '{name}' of {where} is neither another asset nor a parameter of a launch.",
                "Those have no default and stand before '*', these stand behind it.",
            )
    if unknown := set(ins) - set(inputs):
        raise SpecError(f"There is no parameter {sorted(unknown)[0]!r} in {where}.", f"It has: {', '.join(inputs) or 'none'}.")
    return inputs, params


def _param(parameter: inspect.Parameter, function: _Function, where: str) -> Param:
    kind: Any = parameter.annotation
    with contextlib.suppress(NameError, TypeError, AttributeError):  # one may be written as text, and another not be known here
        alone = SimpleNamespace(__annotations__={parameter.name: kind})
        kind = get_type_hints(alone, function.__globals__)[parameter.name]
    choices = list(get_args(kind)) if get_origin(kind) is Literal else None
    name = "str" if choices and all(isinstance(choice, str) for choice in choices) else _TYPES.get(kind)
    if name is None:
        raise SpecError(
            f"Parameter '{parameter.name}' of {where} is of type {_type_name(parameter.annotation) or 'none'}.",
            f"The types of parameters are: {', '.join(dict.fromkeys(_TYPES.values()))}, or a Literal of texts.",
        )
    default: Any = None if parameter.default is inspect.Parameter.empty else parameter.default
    return Param(type=name, default=default, choices=choices)


def _description(function: _Function) -> str:
    returned = _type_name(inspect.signature(function).return_annotation)
    parts = [inspect.getdoc(function) or "", f"Returns `{returned}`." if returned else ""]
    return "\n\n".join(part for part in parts if part)


def _type_name(annotation: object) -> str:
    if annotation is inspect.Parameter.empty or annotation is None:
        return ""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
