"""One step: op config in, the engine in the middle, a materialization or a failure out."""

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from forge_orchestration.analyses import spec_from_definition
from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.messages import printable
from forge_orchestration.model.spec import AnalysisDefinition
from forge_orchestration.orchestration.live import RunLog
from forge_orchestration.orchestration.materialization import data_version, record_metadata, stderr_tail
from forge_orchestration.orchestration.op_config import spec_arguments
from forge_orchestration.orchestration.previews import output_previews
from forge_orchestration.settings import Settings

TRANSIENT_RETRIES = 3
TRANSIENT_WAIT_S = 10


def run_step(context: dg.AssetExecutionContext, definition: AnalysisDefinition, settings: Settings) -> dg.MaterializeResult[None]:
    """Run an analysis as this step.

    Raises:
        Failure: The analysis failed, or it could not be started: one sentence, never tried again by itself.
        RetryRequested: A backend did not answer; Dagster will try again.
        DagsterExecutionInterruptedError: The run was terminated, and the sandbox has ended.
    """
    step = context.op_execution_context
    log = RunLog(context.log)
    try:
        spec = spec_from_definition(
            definition,
            settings,
            **spec_arguments(step.op_config, definition),
            asked_by="op config",
            dagster_run_id=context.run.run_id,
            dagster_step_key=step.get_step_execution_context().step.key,
        )
        with canceled_by_signals() as cancel:
            try:
                record = Engine(settings).run(spec, listener=log, cancel=cancel)
            finally:
                log.finish()
    except ForgeError as error:
        if error.transient:
            raise dg.RetryRequested(max_retries=TRANSIENT_RETRIES, seconds_to_wait=TRANSIENT_WAIT_S) from error
        raise failure_of(error) from None
    for finding in record.guard.findings if record.guard is not None else ():
        context.log.warning(f"{finding.verdict}: {finding.target}: {finding.what}")
    if cancel.is_set():
        context.log.error(f"{record.message} Its record is {record.folder}/record.json.")
        raise dg.DagsterExecutionInterruptedError
    metadata = record_metadata(record)
    if not record.succeeded:
        raise dg.Failure(record.message, {**metadata, **stderr_tail(record)}, allow_retries=False)
    return dg.MaterializeResult(
        metadata={**metadata, **output_previews(record)},
        data_version=dg.DataVersion(data_version(record)),
        tags={"forge/execution_id": record.execution_id},
    )


def failure_of(error: ForgeError) -> dg.Failure:
    """An error of ours as a failed step: the sentence, what to do, and no retry."""
    return dg.Failure(printable(str(error)), {"exit_status": error.exit_code}, allow_retries=False)


@contextmanager
def canceled_by_signals() -> Iterator[threading.Event]:
    """An event that is set when Dagster, or a person at the keyboard, interrupts this process.

    By default Dagster raises out of whatever line the step is at, be it half-way through the writing of a record. With
    an event the engine ends the sandbox within its grace period, and brings the record to its end.
    In a thread other than the main one signals cannot be caught, and the event is never set.
    """
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
