"""`sandboxed_executor`: Dagster's steps on threads of one process, each of which waits for an execution in a sandbox.

A step of Forge has nothing to compute: its analysis has processes, limits and a supervisor of its own. So it needs no process,
which costs Dagster a second each, and the process that holds the run needs no more than control code does. Everything else is
as in Dagster's own executors, whose state machine (`ActiveExecution`) decides what runs when. Unlike those, it goes on after
the death of its process with what had not finished.
"""

import asyncio
import ctypes
import functools
import os
import queue
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.events import EngineEventData
from dagster._core.execution.api import ExecuteRunWithPlanIterable
from dagster._core.execution.context.system import PlanExecutionContext, PlanOrchestrationContext, StepExecutionContext
from dagster._core.execution.context_creation_job import PlanExecutionContextManager
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.execute_plan import _trigger_hook, dagster_event_sequence_for_step
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.objects import step_failure_event_from_exc_info
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode, get_retries_config
from dagster._core.execution.tags import get_tag_concurrency_limits_config
from dagster._core.storage.compute_log_manager import CapturedLogContext

from forge_orchestration.operations.workers import register_this_process
from forge_orchestration.orchestration import step_thread
from forge_orchestration.orchestration.captured_logs import CapturedLogs
from forge_orchestration.orchestration.step_thread import StepThread
from forge_orchestration.orchestration.trust import check_trust, is_backed
from forge_orchestration.settings import load_settings, make_home

_LOOK_S = 0.1  # between two looks for an interrupt, which Dagster only notes
_IDLE_S = 0.05  # while no step runs and one waits for its retry or for a place in a pool
_STARTED = (dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_RESTARTED)
_MARKS = (*_STARTED, dg.DagsterEventType.STEP_UP_FOR_RETRY)

_News = tuple[str, dg.DagsterEvent | BaseException | None]
"""The key of a step, and: an event of it, what ended its thread against all expectation, or that its thread has ended."""


class SandboxedExecutor(dg.Executor):
    """Runs the steps of a run on threads.

    Args:
        retries: Whether steps that ask for it are tried again.
        max_concurrent: Steps at one time.
        tag_concurrency_limits: As Dagster's executors take them: `[{key, value, limit}]`.
    """

    def __init__(self, retries: RetryMode, max_concurrent: int, tag_concurrency_limits: Sequence[Mapping[str, Any]] = ()) -> None:
        self._retries = retries
        self._max_concurrent = max_concurrent
        self._tag_concurrency_limits = [dict(limit) for limit in tag_concurrency_limits]

    @property
    def retries(self) -> RetryMode:
        return self._retries

    def execute(self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan) -> Iterator[dg.DagsterEvent]:
        """Run the plan to its end; called by Dagster."""
        keys = execution_plan.step_keys_to_execute
        settings = load_settings()
        make_home(settings)
        register_this_process(settings.workers_dir, plan_context.run_id)
        yield dg.DagsterEvent.engine_event(
            plan_context,
            f"Executing steps in sandboxes, at most {self._max_concurrent} at one time (pid: {os.getpid()})",
            EngineEventData.in_process(os.getpid(), keys),
        )
        yield from ExecuteRunWithPlanIterable(
            execution_plan=plan_context.execution_plan,
            iterator=functools.partial(self._run, resume=plan_context.resume_from_failure),
            execution_context_manager=PlanExecutionContextManager(
                job=plan_context.job,
                retry_mode=plan_context.retry_mode,
                execution_plan=plan_context.execution_plan,
                run_config=plan_context.run_config,
                dagster_run=plan_context.dagster_run,
                instance=plan_context.instance,
                raise_on_error=plan_context.raise_on_error,
                output_capture=plan_context.output_capture,
                step_dependency_config=self.step_dependency_config,
            ),
        )
        yield dg.DagsterEvent.engine_event(plan_context, f"Finished steps (pid: {os.getpid()})", EngineEventData())

    def _run(self, job_context: PlanExecutionContext, execution_plan: ExecutionPlan, resume: bool) -> Iterator[dg.DagsterEvent]:
        with (
            InstanceConcurrencyContext(job_context.instance, job_context.dagster_run) as pools,
            ActiveExecution(
                execution_plan,
                retry_mode=job_context.retry_mode,
                max_concurrent=self._max_concurrent,
                tag_concurrency_limits=self._tag_concurrency_limits,
                instance_concurrency_context=pools,
                step_dependency_config=self.step_dependency_config,
            ) as active,
        ):
            yield from _Steps(job_context, active, self._max_concurrent).run(resume)


class _Steps:
    """The steps of one run: this thread owns the state machine, theirs only put events into a queue."""

    def __init__(self, job_context: PlanExecutionContext, active: ActiveExecution, max_concurrent: int) -> None:
        self._context = job_context
        self._active = active
        self._max_concurrent = max_concurrent
        self._cancel = threading.Event()
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._threads: dict[str, threading.Thread] = {}
        self._ends: dict[str, dg.DagsterEvent] = {}
        self._unexpected: BaseException | None = None

    def run(self, resume: bool) -> Iterator[dg.DagsterEvent]:
        """Until all are done, or all that run have ended after an interrupt.

        Raises:
            DagsterExecutionInterruptedError: The run was interrupted; nothing of it runs any more.
        """
        active = self._active
        try:
            if resume:
                yield from self._resume()
            while self._threads or not (self._cancel.is_set() or active.is_complete):
                if not self._cancel.is_set() and active.check_for_interrupts():
                    yield from self._interrupt()
                if not self._cancel.is_set():
                    yield from self._start_what_is_due()
                yield from self._hear()
                if not self._cancel.is_set():
                    yield from active.plan_events_iterator(self._context)
        except BaseException:
            self._end_all()
            raise
        if self._unexpected is not None:
            raise self._unexpected
        if self._cancel.is_set():
            raise dg.DagsterExecutionInterruptedError("The run was interrupted; its executions have ended.")

    def _start_what_is_due(self) -> Iterator[dg.DagsterEvent]:
        for step in self._active.get_steps_to_execute(self._max_concurrent - len(self._threads)):
            yield from self._start(step, resumed=False)
        yield from self._active.concurrency_event_iterator(self._context)

    def _start(self, step: ExecutionStep, *, resumed: bool) -> Iterator[dg.DagsterEvent]:
        context = self._context
        known = self._active.get_known_state()
        step_context = context.for_step(step, known._replace(ready_outputs=set(known.ready_outputs)))  # it goes on growing
        log_key = context.instance.compute_log_manager.build_log_key_for_run(context.run_id, secrets.token_hex(8))
        yield dg.DagsterEvent.capture_logs(context, [step.key], log_key, CapturedLogContext(log_key))
        place = StepThread(cancel=self._cancel, logs=CapturedLogs(context.instance, log_key), resumed=resumed)
        thread = threading.Thread(target=self._work, args=(step_context, place), name=f"step {step.key}", daemon=True)
        self._threads[step.key] = thread
        thread.start()

    def _hear(self) -> Iterator[dg.DagsterEvent]:
        """What happens next in a thread, if anything does in a moment."""
        try:
            key, news = self._news.get(timeout=_LOOK_S if self._threads else _IDLE_S)
        except queue.Empty:
            self._miss_dead_threads()
            return
        if isinstance(news, BaseException):
            self._unexpected = self._unexpected or news
        elif news is None:
            self._see_end(key)
        else:
            yield news
            if news.is_step_failure or news.is_step_success or news.is_step_up_for_retry:
                self._ends[key] = news  # its hooks come first, then what depends on it, or itself again
            else:
                self._active.handle_event(news)

    def _see_end(self, key: str) -> None:
        self._threads.pop(key).join()
        if (end := self._ends.pop(key, None)) is not None:
            self._active.handle_event(end)
        self._active.verify_complete(self._context, key)

    def _miss_dead_threads(self) -> None:
        """A thread that could not even say that it has ended would be waited for without end."""
        dead = [key for key, thread in self._threads.items() if not thread.is_alive()]
        if dead and self._news.empty():  # what it had said was heard: the dead say nothing more
            for key in dead:
                self._see_end(key)

    def _work(self, step_context: StepExecutionContext, place: StepThread) -> None:
        """One step, on a thread of its own."""
        key, kept = step_context.step.key, list[dg.DagsterEvent]()
        # hooks are given all events of their step; without any, those of thousands of partitions need not be kept
        has_hooks = bool(step_context.job_def.get_all_hooks_for_handle(step_context.node_handle))
        step_thread.enter(place)
        # all steps of a run share one event loop, which cannot be driven by two threads
        step_context._event_loop = loop = asyncio.new_event_loop()
        try:
            for event in dagster_event_sequence_for_step(step_context):
                if has_hooks or event.is_step_failure:
                    kept.append(event)
                self._news.put((key, event))
            for event in _trigger_hook(step_context, kept) if has_hooks else ():
                self._news.put((key, event))
        except dg.DagsterExecutionInterruptedError:
            pass  # the step's failure is among its events
        except BaseException as error:
            if not any(event.is_step_failure for event in kept):
                self._news.put((key, step_failure_event_from_exc_info(step_context, sys.exc_info())))
            elif step_context.raise_on_error:
                self._news.put((key, error))
        finally:
            try:
                loop.close()
                place.logs.complete()
            except Exception as error:  # of whatever keeps Dagster's logs: the execution has its own
                step_context.log.warning(f"The log of {key} cannot be completed: {error}.")
            finally:
                self._news.put((key, None))

    def _interrupt(self) -> Iterator[dg.DagsterEvent]:
        self._active.mark_interrupted()
        yield dg.DagsterEvent.engine_event(
            self._context, "The run is interrupted: its executions are ended.", EngineEventData.interrupted(list(self._threads))
        )
        self._ask_threads_to_end()

    def _ask_threads_to_end(self) -> None:
        self._cancel.set()
        for key, thread in self._threads.items():
            definition = self._context.job_def.get_node(self._active.get_step_by_key(key).node_handle).definition
            if not (isinstance(definition, dg.OpDefinition) and is_backed(definition)) and thread.ident is not None:
                # a body that Forge did not write does not look for the event
                interrupted = ctypes.py_object(dg.DagsterExecutionInterruptedError)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), interrupted)

    def _end_all(self) -> None:
        """What runs has nobody any more who would hear of it: Dagster's own state machine or storage failed."""
        self._ask_threads_to_end()
        for thread in self._threads.values():
            thread.join()

    def _resume(self) -> Iterator[dg.DagsterEvent]:
        """Go on where a process that was killed stopped, as the run's events tell it."""
        context, active = self._context, self._active
        entries = context.instance.all_logs(context.run_id)
        # a step that is skipped is found by the state machine itself, and refused from outside
        prior = [
            event
            for event in (entry.dagster_event for entry in entries)
            if event is not None and event.step_key is not None and not event.is_step_skipped
        ]
        last = {event.step_key: event.event_type for event in prior if event.event_type in _MARKS}
        in_flight = active.rebuild_from_events(prior)
        yield from (event for event in prior if event.is_step_failure)
        if not in_flight:
            return
        names = ", ".join(step.key for step in in_flight)
        yield dg.DagsterEvent.engine_event(
            context, f"The process of this run was killed; what had finished is kept. Going on with {names}.", EngineEventData()
        )
        for step in in_flight:
            yield from self._start(step, resumed=last.get(step.key) in _STARTED)


@dg.executor(
    name="sandboxed",
    config_schema={
        "max_concurrent": dg.Field(
            dg.Noneable(dg.Int),
            default_value=None,
            description="Steps at one time; as many as the host has processors if it is not given. "
            "Executions that do not fit on the host wait, however many steps there are.",
        ),
        "retries": get_retries_config(),  # type: ignore[no-untyped-call]
        "tag_concurrency_limits": get_tag_concurrency_limits_config(),  # type: ignore[no-untyped-call]
    },
)
def sandboxed_executor(init_context: dg.InitExecutorContext) -> SandboxedExecutor:
    """Each step waits on a thread for an execution in a sandbox; see `SandboxedExecutor`.

    Raises:
        DagsterUnmetExecutorRequirementsError: A step is neither Forge's nor tagged `forge/trusted`, or the config is wrong.
    """
    check_trust(init_context.job.get_definition())
    config: Any = init_context.executor_config
    wanted = config["max_concurrent"]
    if wanted is not None and wanted < 1:
        raise dg.DagsterUnmetExecutorRequirementsError(f"max_concurrent is {wanted}, and must be at least 1.")
    retries = RetryMode.from_config(config["retries"])
    assert retries is not None
    return SandboxedExecutor(retries, wanted or os.cpu_count() or 1, config.get("tag_concurrency_limits") or ())
