"""The public Python call, for code that used `subprocess.run` until now."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from forge_orchestration.errors import ExecutorError, SpecError

if TYPE_CHECKING:  # `import forge_orchestration` stays cheap: the spawner and every command pay for it
    from forge_orchestration.engine import Engine
    from forge_orchestration.executors.feed import Listener
    from forge_orchestration.model.record import ExecutionRecord
    from forge_orchestration.model.spec import AnalysisSpec
    from forge_orchestration.settings import Settings

_engine: Engine | None = None
_engine_lock = threading.Lock()


class ExecutionFailed(ExecutorError):
    """Raised by `run(…, check=True)` for an execution that did not succeed, or whose result could not be published; `record` is its record."""

    def __init__(self, record: ExecutionRecord) -> None:
        super().__init__(record.why_unpublished or record.message, f"Its record: {record.folder}/record.json")
        self.record = record


def run(
    what: AnalysisSpec | str | Sequence[str],
    *,
    runtime: str | None = None,
    executor: str | None = None,
    inputs: Mapping[str, str] | None = None,
    outputs: Sequence[str] | Mapping[str, str] = (),
    partition: str | None = None,
    params: Mapping[str, object] | None = None,
    limits: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    threads: int | None = None,
    seed: int | None = None,
    priority: int | None = None,
    cache: str | None = None,
    wait_for_room: bool = True,
    check: bool = False,
    listener: Listener | None = None,
    cancel: threading.Event | None = None,
) -> ExecutionRecord:
    """Run an analysis or a command in a sandbox, wait for it, and return its record; of one in stages that of the last that was run.

    Args:
        what: Name of an analysis, path of an analysis folder (with a `/`), a command as a list of words, or a complete spec
            (every other argument but `wait_for_room`, `check`, `listener` and `cancel` is then left out).
        runtime: Name of a runtime; default: the analysis' own, or `forge-python` for a command.
        inputs: Path by name; each is seen at `/forge/inputs/<name>`.
        outputs: Patterns beneath `/forge/outputs` that must match (a mapping gives them names); only for a command.
        partition: Which part of an analysis that has partitions.
        limits: As in `analysis.yaml`: `{"memory": "2GiB", "cpus": 1, "wall_time": "30min"}`.
        env: Environment variables; only for a command.
        priority: Of those that wait for room, the highest is first.
        cache: What is done with an earlier result that was made of the very same: `use` takes it, `refresh` runs all the same,
            `off` too and keeps the new one from being reused, `only` runs nothing. Default: as the analysis and the
            deployment's settings say; `off` for a command.
        wait_for_room: Wait in the queue while other executions take what it needs; else raise `BackendUnavailableError`.
        check: Raise `ExecutionFailed` unless it succeeded, and each of its stages, and what is to be published was.
        cancel: Set it from another thread to end the execution.

    Raises:
        ForgeError: Nothing was started; the sentence says why.

    An analysis that fails is no exception: look at `record.status` and `record.message`.
    """
    from forge_orchestration.model.spec import AnalysisSpec
    from forge_orchestration.operations.retry_with_more import run_with_more
    from forge_orchestration.operations.stages import run_stages

    engine = _shared_engine()
    if isinstance(what, AnalysisSpec):
        specs = [what]
    elif isinstance(what, str):
        from forge_orchestration.analyses import load_definition, specs_from_definition

        if outputs or env:
            raise SpecError(f"Outputs and environment of analysis '{what}' are declared in its analysis.yaml.")
        specs = specs_from_definition(
            load_definition(what, engine.settings), engine.settings, runtime=runtime, executor=executor, inputs=inputs,
            partition=partition, params=params, limits=limits, threads=threads, seed=seed, priority=priority, cache=cache,
            asked_by="caller",
        )  # fmt: skip
    else:
        if partition is not None:
            raise SpecError("A command has no partitions.", "Give it the key as one of its words.")
        one = command_spec(
            what, engine.settings, runtime=runtime, executor=executor, inputs=inputs, outputs=outputs, params=params,
            limits=limits, env=env, threads=threads, seed=seed, priority=priority, cache=cache, asked_by="caller",
        )  # fmt: skip
        specs = [one]
    records = run_stages(
        specs, lambda spec: run_with_more(engine, spec, listener=listener, cancel=cancel, wait_for_room=wait_for_room)
    )
    for record in records:
        if check and (not record.succeeded or record.unpublished):
            raise ExecutionFailed(record)
    return records[-1]


def command_spec(
    command: Sequence[str],
    settings: Settings,
    *,
    runtime: str | None = None,
    executor: str | None = None,
    inputs: Mapping[str, str] | None = None,
    outputs: Sequence[str] | Mapping[str, str] = (),
    params: Mapping[str, object] | None = None,
    limits: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    threads: int | None = None,
    seed: int | None = None,
    priority: int | None = None,
    cache: str | None = None,
    asked_by: str = "caller",
) -> AnalysisSpec:
    """A request to run a bare command; arguments as those of `run`.

    Raises:
        SpecError: The request is wrong.
        RuntimeCatalogError: The runtime is unknown.
    """
    from forge_orchestration.analyses import executor_by_rule
    from forge_orchestration.analyses.checks import (
        check_cache,
        check_command,
        check_count,
        check_environment,
        check_output_pattern,
        check_priority,
    )  # fmt: skip
    from forge_orchestration.executions.inputs import check_input_name
    from forge_orchestration.model.limits import check_limits, updated_limits
    from forge_orchestration.model.spec import AnalysisSpec
    from forge_orchestration.runtimes.catalog import load_definition

    words = tuple(command)
    check_command(words, f"the {asked_by}")
    for name in inputs or {}:
        check_input_name(name, f"the {asked_by}")
    name = runtime or "forge-python"
    effective = updated_limits(settings.defaults, load_definition(name, settings).limits, f"runtime '{name}'")
    effective = updated_limits(effective, limits or {}, f"the {asked_by}")
    check_limits(effective, settings.maximum)
    patterns = dict(outputs) if isinstance(outputs, Mapping) else {pattern: pattern for pattern in outputs}
    for pattern in patterns.values():
        check_output_pattern(pattern, "declared output")
    check_environment(env or {}, f"the {asked_by}")
    where, chosen_by = (executor, asked_by) if executor else executor_by_rule(settings, effective)
    return AnalysisSpec(
        name="exec",
        command=words,
        runtime=name,
        executor=where,
        inputs=dict(inputs or {}),
        outputs=patterns,
        params=dict(params or {}),  # type: ignore[arg-type]
        limits=effective,
        env=dict(env or {}),
        threads=check_count("threads", 1 if threads is None else threads, 1),
        seed=check_count("seed", 0 if seed is None else seed, 0),
        priority=check_priority(priority or 0),
        cache=check_cache(cache or "off"),
        chosen_by={"runtime": asked_by if runtime else "default", "executor": chosen_by},
    )


def _shared_engine() -> Engine:
    """One engine a process and `FORGE_HOME`: its spawner and its store stay open between calls."""
    global _engine
    from forge_orchestration.engine import Engine
    from forge_orchestration.settings import load_settings

    settings = load_settings()
    with _engine_lock:
        if _engine is None or _engine.settings != settings:
            _engine = Engine(settings)
        return _engine
