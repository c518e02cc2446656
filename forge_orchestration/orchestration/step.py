"""One step: op config in, the engine in the middle, a materialization or a failure out."""

import _thread
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath

import dagster as dg
import msgspec

from forge_orchestration.analyses import spec_from_definition
from forge_orchestration.engine import Engine
from forge_orchestration.errors import CanceledError, ForgeError
from forge_orchestration.executions import upstream
from forge_orchestration.executions.messages import printable
from forge_orchestration.executors.feed import Listener
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisDefinition, AnalysisSpec
from forge_orchestration.operations.retry_with_more import next_attempt, repeated
from forge_orchestration.operations.take_over import is_its_own_end, last_of_step, take_over
from forge_orchestration.orchestration import step_thread
from forge_orchestration.orchestration.live import RunLog
from forge_orchestration.orchestration.materialization import (
    check_result,
    data_version,
    materialization_tags,
    record_metadata,
    stderr_tail,
)
from forge_orchestration.orchestration.op_config import spec_arguments
from forge_orchestration.orchestration.previews import materialization_metadata
from forge_orchestration.orchestration.step_thread import StepThread
from forge_orchestration.settings import Settings

TRANSIENT_RETRIES = 3
TRANSIENT_WAIT_S = 10
_MAX_PARENTS = 100  # of re-executions of re-executions


def materialize(
    context: dg.AssetExecutionContext, definition: AnalysisDefinition, settings: Settings, partition: str | None = None
) -> dg.MaterializeResult[None]:
    """Run an analysis as this step, the step of an asset; raises what `run_analysis` does."""
    record = run_analysis(context.op_execution_context, definition, settings, partition=partition)
    return dg.MaterializeResult(
        metadata=materialization_metadata(record),
        data_version=dg.DataVersion(data_version(record)),
        tags=materialization_tags(record),
        check_results=[check_result(check) for check in record.checks],
    )


def run_analysis(
    context: dg.OpExecutionContext, definition: AnalysisDefinition, settings: Settings, inputs: Mapping[str, str] | None = None,
    partition: str | None = None,
) -> ExecutionRecord:  # fmt: skip
    """Run an analysis as this step, and return the record of its success.

    Args:
        inputs: Sources by name, instead of the definition's.
        partition: Key of the part that is meant, if it has any.

    Raises:
        Failure: The analysis failed, or it could not be started: one sentence, never tried again by itself.
        RetryRequested: A backend did not answer; Dagster will try again.
        DagsterExecutionInterruptedError: The run was terminated, and the sandbox has ended.
    """
    thread = step_thread.current()
    log = RunLog(context.log, thread.logs if thread is not None else None)
    try:
        engine = Engine(settings)
        spec = step_spec(context, definition, engine, inputs, partition)
        with cancellation(thread) as cancel:
            try:
                record = _run(engine, spec, context, log, cancel, was_begun=thread is not None and thread.resumed)
            finally:
                log.finish()
    except CanceledError:
        raise dg.DagsterExecutionInterruptedError from None
    except ForgeError as error:
        if error.transient:
            most = definition.retry_with_more.attempts - 1 + TRANSIENT_RETRIES
            raise dg.RetryRequested(max_retries=most, seconds_to_wait=TRANSIENT_WAIT_S) from error
        raise failure_of(error) from None
    for finding in record.guard.findings if record.guard is not None else ():
        context.log.warning(f"{finding.verdict}: {finding.target}: {finding.what}")
    if cancel.is_set():
        context.log.error(f"{record.message} Its record is {record.folder}/record.json.")
        raise dg.DagsterExecutionInterruptedError
    if not record.succeeded:
        failure = dg.Failure(record.message, {**record_metadata(record), **stderr_tail(record)}, allow_retries=False)
        more = next_attempt(spec, record, settings.maximum)
        if more is not None and not context.get_step_execution_context().retry_mode.disabled:
            context.log.warning(f"{record.message} {more[1]}")
            raise dg.RetryRequested(max_retries=spec.retry_with_more.attempts - 1 + TRANSIENT_RETRIES) from failure
        raise failure
    if record.unpublished:
        failure = dg.Failure(printable(record.why_unpublished), record_metadata(record), allow_retries=False)
        if all(one.transient for one in record.unpublished):
            raise dg.RetryRequested(max_retries=TRANSIENT_RETRIES, seconds_to_wait=TRANSIENT_WAIT_S) from failure
        raise failure
    return record


def step_spec(
    context: dg.OpExecutionContext, definition: AnalysisDefinition, engine: Engine, inputs: Mapping[str, str] | None = None,
    partition: str | None = None,
) -> AnalysisSpec:  # fmt: skip
    """What this step asks for; arguments as those of `run_analysis`.

    Raises:
        ForgeError: It cannot be had.
    """
    spec = spec_from_definition(
        definition, engine.settings, **spec_arguments(context.op_config, definition), partition=partition, asked_by="op config",
        dagster_run_id=context.run.run_id, dagster_step_key=context.get_step_execution_context().step.key,
    )  # fmt: skip
    sources = _pinned(spec.inputs if inputs is None else inputs, context, engine, partition)
    if definition.function:  # by the ending it is known what is in a file
        sources = {name + PurePosixPath(source).suffix: source for name, source in sources.items()}
    return msgspec.structs.replace(spec, inputs=sources)


def _pinned(sources: Mapping[str, str], context: dg.OpExecutionContext, engine: Engine, partition: str | None) -> dict[str, str]:
    """Sources with the execution that each stands for: what this run has made, or those that it is a re-execution of, comes first."""
    run_ids: list[str] = []
    executions = engine.settings.executions_dir
    run: dg.DagsterRun | None = context.run
    while run is not None and len(run_ids) < _MAX_PARENTS:
        run_ids.append(run.run_id)
        run = context.instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return {name: upstream.pinned(source, engine.store, executions, run_ids, partition) for name, source in sources.items()}


def _run(
    engine: Engine, spec: AnalysisSpec, context: dg.OpExecutionContext, log: RunLog, cancel: threading.Event, *, was_begun: bool
) -> ExecutionRecord:
    """The final record of a new execution, or of the one that a killed process had begun for this very step."""
    retries = context.retry_number
    if was_begun or retries:
        assert spec.dagster_run_id is not None and spec.dagster_step_key is not None
        before = last_of_step(engine, spec.dagster_run_id, spec.dagster_step_key)
        if before is not None and was_begun:
            log.show_logs(before)  # if it has ended meanwhile nothing more comes of it
            before = taken_over(engine, before, context, log, cancel)
            if is_its_own_end(before) or cancel.is_set():
                return before
        if before is not None and before.succeeded:  # all that was left to do is to publish it
            return engine.publish_pending(before, cancel=cancel)
        if before is not None:
            more = next_attempt(spec, before, engine.settings.maximum)
            spec = repeated(spec, before) if more is None else more[0]
    return engine.run(spec, listener=log, cancel=cancel)


def taken_over(
    engine: Engine, before: ExecutionRecord, context: dg.OpExecutionContext, log: Listener, cancel: threading.Event
) -> ExecutionRecord:
    """What became of an execution that a killed process had begun for this step."""
    if not before.status.is_final:
        context.log.info(f"Execution {before.execution_id} was begun by a process that was killed; taking it over.")
    ended = take_over(engine, before, listener=log, cancel=cancel)
    then = "has ended ({}); it is not run again" if is_its_own_end(ended) or cancel.is_set() else "was lost ({}); it is run again"
    context.log.info(f"Execution {ended.execution_id} {then.format(ended.end_reason)}.")
    return ended


def failure_of(error: ForgeError) -> dg.Failure:
    """An error of ours as a failed step: the sentence, what to do, and no retry."""
    return dg.Failure(printable(str(error)), {"exit_status": error.exit_code}, allow_retries=False)


@contextmanager
def cancellation(thread: StepThread | None) -> Iterator[threading.Event]:
    """An event that is set when the run is interrupted: by the executor whose thread this is, or by a signal to this process.

    By default Dagster raises out of whatever line the step is at, be it half-way through the writing of a record. With
    an event the engine ends the sandbox within its grace period, and brings the record to its end.
    In another executor's thread, other than the main one, signals cannot be caught, and the event is never set.
    """
    if thread is not None:
        yield thread.cancel
        return
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def interrupt(_number: int, _frame: object) -> None:
        # In a thread of its own: this runs between two instructions of the main thread, which may hold the lock.
        _thread.start_new_thread(event.set, ())

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not set by Python, so there is nothing that Python could set again
                signal.signal(number, handler)
