"""Partitions of an analysis: one execution each, as many at one time as the launch says, all of them in one step if that is asked for."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime, time
from pathlib import Path

import dagster as dg
from dagster._core.definitions.assets.definition.asset_spec import AssetExecutionType
from dagster._core.definitions.data_version import DataVersion
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.execution.plan.execute_step import _get_output_asset_events

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.messages import printable
from forge_orchestration.model.messages import Message
from forge_orchestration.model.record import CheckFacts, ExecutionRecord
from forge_orchestration.model.spec import AnalysisDefinition, Partitions
from forge_orchestration.operations.retry_with_more import next_attempt, repeated, run_with_more
from forge_orchestration.operations.take_over import is_its_own_end
from forge_orchestration.orchestration import step_thread
from forge_orchestration.orchestration.materialization import data_version, materialization_tags
from forge_orchestration.orchestration.op_config import AT_ONCE
from forge_orchestration.orchestration.previews import materialization_metadata
from forge_orchestration.orchestration.step import (
    TRANSIENT_RETRIES,
    TRANSIENT_WAIT_S,
    cancellation,
    materialize,
    step_spec,
    taken_over,
)
from forge_orchestration.settings import Settings

_LOOK_S = 0.1
_MOST_TOLD = 100  # failures with a log event each
_MOST_NAMED = 20  # in the sentence at the end

_Event = dg.AssetMaterialization | dg.AssetCheckResult | dg.MaterializeResult[None]


def partitions_definition(partitions: Partitions) -> dg.PartitionsDefinition[str]:
    """As Dagster has it. Windows of time are in UTC."""
    if partitions.keys:
        return dg.StaticPartitionsDefinition(partitions.keys)
    if partitions.start is not None:
        kinds: dict[str, Callable[..., dg.PartitionsDefinition[str]]] = {
            "hour": dg.HourlyPartitionsDefinition, "day": dg.DailyPartitionsDefinition, "week": dg.WeeklyPartitionsDefinition,
            "month": dg.MonthlyPartitionsDefinition,
        }  # fmt: skip
        return kinds[partitions.every](start_date=datetime.combine(partitions.start, time.min))
    return dg.DynamicPartitionsDefinition(name=partitions.dynamic)


def backfill_policy(partitions: Partitions | None) -> dg.BackfillPolicy:
    """How many of a backfill's partitions one run has: each has its own execution and limits anyway, so all, if it does not say."""
    most = partitions.per_run if partitions is not None else None
    return dg.BackfillPolicy.single_run() if most is None else dg.BackfillPolicy.multi_run(most)


def materialize_partitions(
    context: dg.AssetExecutionContext, definition: AnalysisDefinition, settings: Settings
) -> Iterator[_Event]:
    """Run an analysis for each partition of this run: one as any step, several beside each other, with an event as each ends.

    Raises:
        Failure: Some failed, after all others have been run; or there is no partition.
        RetryRequested, DagsterExecutionInterruptedError: As of `materialize`; several are tried again here, one by one.
    """
    if not (context.has_partition_key or context.has_partition_key_range):
        raise dg.Failure(
            f"Asset '{definition.name}' has partitions, and the run names none. Launch it with one: the tag dagster/partition, "
            "or --partition of dg launch.",
            allow_retries=False,
        )
    keys = list(context.partition_keys)
    if not keys:
        first, last = context.partition_key_range
        raise dg.Failure(f"There is no partition of '{definition.name}' from '{first}' to '{last}'.", allow_retries=False)
    if len(keys) == 1:
        yield materialize(context, definition, settings, str(keys[0]))
    else:
        yield from _Several(context, definition, settings, keys).run()


class _Quiet:
    """A listener that says where each execution is: of thousands nobody reads more, and every event costs Dagster a write."""

    def __init__(self, key: str, log: dg.DagsterLogManager) -> None:
        self._key, self._log = key, log

    def on_started(self, record: ExecutionRecord) -> None:
        self._log.info(f"{self._key}: execution {record.execution_id}, its logs and record are in {record.folder}.")

    def on_log(self, stream: str, data: bytes) -> None:
        pass

    def on_message(self, message: Message) -> None:
        pass


class _Several:
    """The partitions of one step: this thread owns Dagster's events, others wait for one execution each."""

    def __init__(
        self, context: dg.AssetExecutionContext, definition: AnalysisDefinition, settings: Settings, keys: Sequence[str]
    ) -> None:
        self._context, self._op_context = context, context.op_execution_context
        self._definition = definition
        self._keys = keys
        self._engine = Engine(settings)
        self._stop = threading.Event()
        thread = step_thread.current()
        self._thread = thread
        self._logs = thread.logs if thread is not None else None
        begun_before = thread is not None and thread.resumed
        self._begun = self._engine.store.partitions_of_run(context.run.run_id, definition.name) if begun_before else {}
        self._shown = self._already_shown() if begun_before else set()
        self._failed: list[tuple[str, str]] = []
        self._checks = {name: _Check() for name in definition.checks}

    def run(self) -> Iterator[_Event]:
        at_once = self._op_context.op_config[AT_ONCE]
        self._context.log.info(f"{len(self._keys)} partitions, at most {at_once} at one time.")
        waiting, running = deque(self._keys), dict[Future[ExecutionRecord], str]()
        with cancellation(self._thread) as cancel, ThreadPoolExecutor(at_once, "partition") as pool:
            try:
                while running or (waiting and not cancel.is_set()):
                    while waiting and len(running) < at_once and not cancel.is_set():
                        key = waiting.popleft()
                        running[pool.submit(self._run_one, str(key))] = key
                    for ended in wait(running, _LOOK_S, FIRST_COMPLETED).done:
                        yield from self._event(running.pop(ended), ended)
                    if cancel.is_set():
                        self._stop.set()
            finally:
                self._stop.set()  # whoever reads the events may have had enough
        if cancel.is_set():
            raise dg.DagsterExecutionInterruptedError
        results = [found.result(name) for name, found in self._checks.items() if found.count]
        if self._failed:
            yield from results
            raise self._failure()
        # what each partition came to was said above; with this key Dagster does not say it once more, for all alike
        yield dg.MaterializeResult(
            metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True},
            check_results=results,
        )

    def _run_one(self, key: str) -> ExecutionRecord:
        """The final record of one partition. On a thread of its own."""
        left = TRANSIENT_RETRIES
        while True:
            try:
                return self._tried(key)
            except ForgeError as error:
                if not error.transient or not left or self._stop.wait(TRANSIENT_WAIT_S):
                    raise
                left -= 1

    def _tried(self, key: str) -> ExecutionRecord:
        engine, log = self._engine, _Quiet(key, self._context.log)
        spec = step_spec(self._op_context, self._definition, engine, partition=key)
        if (begun := self._begun.get(key)) is not None:
            record = ExecutionFolder(engine.settings.executions_dir, begun).read_record()
            if not (record.status.is_final and is_its_own_end(record)):
                record = taken_over(engine, record, self._op_context, log, self._stop)
            more = next_attempt(spec, record, engine.settings.maximum)
            if (more is None and is_its_own_end(record)) or self._stop.is_set():
                return engine.publish_pending(record, cancel=self._stop)
            spec = repeated(spec, record) if more is None else more[0]
        return run_with_more(
            engine, spec, listener=log, cancel=self._stop,
            told=lambda ended, sentence: self._context.log.warning(f"{key}: {ended.message} {sentence}"),
        )  # fmt: skip

    def _event(self, key: str, ended: Future[ExecutionRecord]) -> Iterator[_Event]:
        """What one partition came to; whatever is wrong with it is its own failure, and no other's."""
        try:
            events = list(self._events_of(key, ended.result()))
        except Exception as error:
            kind = "" if isinstance(error, ForgeError) else f"{type(error).__name__}: "
            self._note_failure(key, printable(f"{kind}{error}"))
        else:
            yield from events

    def _events_of(self, key: str, record: ExecutionRecord) -> Iterator[_Event]:
        if self._logs is not None:
            for stream, log in record.logs.items():
                self._logs.append(stream, f"=== {key}: {record.execution_id} ===\n", Path(log.path))
        for finding in record.guard.findings if record.guard is not None else ():
            self._context.log.warning(f"{key}: {finding.verdict}: {finding.target}: {finding.what}")
        if not record.succeeded:
            self._note_failure(key, f"{record.message} Its record is {record.folder}/record.json.")
            return
        if record.unpublished:
            self._note_failure(key, f"{record.why_unpublished} Its record is {record.folder}/record.json.")
            return
        for check in record.checks:
            if (found := self._checks.get(check.name)) is not None:  # else it was declared before a resume
                found.add(key, check)
        if key not in self._shown:
            yield from self._materialization(key, record)

    def _note_failure(self, key: str, sentence: str) -> None:
        if len(self._failed) < _MOST_TOLD:
            self._context.log.error(f"{key}: {sentence}")
        self._failed.append((key, sentence if not self._failed else ""))

    def _materialization(self, key: str, record: ExecutionRecord) -> Iterator[_Event]:
        """What Dagster would say of this partition alone, with the versions of what it was made from."""
        step = self._op_context.get_step_execution_context()
        name = self._op_context.op_def.output_defs[0].name
        output = dg.Output(
            None, name, metadata=materialization_metadata(record), data_version=DataVersion(data_version(record)),
            tags=materialization_tags(record),
        )  # fmt: skip
        for event in _get_output_asset_events(
            self._context.asset_key, [key], output, step.op_def.output_def_named(name), {}, step, AssetExecutionType.MATERIALIZATION
        ):
            assert isinstance(event, dg.AssetMaterialization)
            yield event

    def _already_shown(self) -> set[str]:
        """Partitions of which the process that was killed had said that they are there."""
        entries = self._context.instance.all_logs(self._context.run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        events = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
        return {event.partition for event in events if event.asset_key == self._context.asset_key and event.partition is not None}

    def _failure(self) -> dg.Failure:
        named = ", ".join(key for key, _ in self._failed[:_MOST_NAMED])
        more = f" and {len(self._failed) - _MOST_NAMED} more" if len(self._failed) > _MOST_NAMED else ""
        first, why = self._failed[0]
        return dg.Failure(
            f"{len(self._failed)} of {len(self._keys)} partitions failed: {named}{more}. The first, {first}: {why}",
            {"failed_partitions": dg.MetadataValue.json([key for key, _ in self._failed])},
            allow_retries=False,
        )


class _Check:
    """One check of several partitions: passed if it passed in each."""

    def __init__(self) -> None:
        self.count = 0
        self._failed: list[str] = []
        self._first = ""
        self._is_error = False

    def add(self, key: str, check: CheckFacts) -> None:
        """What it found in one."""
        self.count += 1
        if not check.passed:
            self._first = self._first or f"The first, {key}: {check.message or 'no more is said'}"
            self._failed.append(key)
            self._is_error = self._is_error or check.severity == "error"

    def result(self, name: str) -> dg.AssetCheckResult:
        """As Dagster's."""
        if not self._failed:
            return dg.AssetCheckResult(passed=True, check_name=name, description=f"Passed in {self.count} partitions.")
        return dg.AssetCheckResult(
            passed=False,
            check_name=name,
            severity=dg.AssetCheckSeverity.ERROR if self._is_error else dg.AssetCheckSeverity.WARN,
            description=f"Failed in {len(self._failed)} of {self.count} partitions. {self._first}",
            metadata={"failed_partitions": dg.MetadataValue.json(self._failed)},
        )
