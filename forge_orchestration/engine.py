"""The one way in which an analysis is run: the CLI, Dagster and `forge_orchestration.run()` all come through here."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from forge_orchestration.errors import BackendUnavailableError, ForgeError, RuntimeCatalogError, SpecError, StoreError
from forge_orchestration.executions import upstream
from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id
from forge_orchestration.executions.inputs import ResolvedInput, resolve_input
from forge_orchestration.executions.store import Store
from forge_orchestration.executors.admission import Admission
from forge_orchestration.executors.base import AnalysisExecutor, ExecutionHandle, PreparedExecution
from forge_orchestration.executors.registry import make_executor
from forge_orchestration.model.limits import check_limits
from forge_orchestration.model.messages import Message
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.record import CodeFacts, ExecutionRecord, LogFacts, RuntimeFacts
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.runtimes import catalog
from forge_orchestration.runtimes.catalog import ResolvedRuntime
from forge_orchestration.sandbox import linux
from forge_orchestration.settings import Settings, make_home

if TYPE_CHECKING:
    from forge_orchestration.health.guard import Guard

_Resolved = tuple[ResolvedRuntime, tuple[ResolvedInput, ...]]
_LOOK_S = 0.1
_RECOVERY_S = 2.0  # a short execution waits at most so long for what dead ones left; the rest is for the next start
_LEAST_ROOM_BYTES = 2**20  # for a record, its logs' beginnings, and the store


class Listener(Protocol):
    """Who wants to see an execution while it runs. Called from the thread that called `Engine.run`."""

    def on_started(self, record: ExecutionRecord) -> None:
        """The execution has its id and its folder. If it is `queued` and has a message, that says what for."""

    def on_log(self, stream: str, data: bytes) -> None:
        """New bytes of `stdout` or `stderr`, untrusted."""

    def on_message(self, message: Message) -> None:
        """A validated message of the analysis."""


class Engine:
    """Runs analyses under one deployment's settings. May be used from several threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        make_home(settings)
        self._store: Store | None = None
        self._executors: dict[str, AnalysisExecutor] = {}
        self._lock = threading.Lock()
        self._looked_back = False
        self._recovery: threading.Thread | None = None

    @property
    def store(self) -> Store:
        """The deployment's store, opened at first use."""
        with self._lock:
            if self._store is None:
                self._store = Store(self.settings.store_path)
            return self._store

    def close(self) -> None:
        """Close the store, for a process that ends now; not while a recovery that takes long writes to it."""
        with self._lock:
            if self._store is not None and not (self._recovery is not None and self._recovery.is_alive()):
                self._store.close()
                self._store = None

    def executor(self, name: str) -> AnalysisExecutor:
        """The executor called `name`, made at first use.

        Raises:
            SpecError: There is none.
        """
        with self._lock:
            if name not in self._executors:
                self._executors[name] = make_executor(name, self.settings)
            return self._executors[name]

    def run(
        self,
        spec: AnalysisSpec,
        *,
        listener: Listener | None = None,
        cancel: threading.Event | None = None,
        runtime: ResolvedRuntime | None = None,
        wait_for_room: bool = True,
    ) -> ExecutionRecord:
        """Run one analysis to its end and return its final record, whatever that end is.

        If an exception is raised in this thread meanwhile (an interrupt), the execution is canceled, its end is waited for and
        recorded, and the exception goes on.

        Args:
            cancel: Set it, from any thread, to end the execution with its grace.
            runtime: Use this one instead of the catalog's; for the self-test of a build that is not in the catalog yet.
            wait_for_room: Whether it is queued while others take what it needs; else it is refused.

        Raises:
            ForgeError: Nothing was started: the request, the host or the runtime is at fault.
        """
        _check_recordable(spec)
        executor = self.executor(spec.executor)
        executor.warm_up()
        check_limits(spec.limits, self.settings.maximum)
        resolve = functools.partial(self._resolve, spec, executor, runtime)
        chosen, inputs = resolve()
        executor.check()
        admission = executor.admission()
        try:
            if admission is None:
                return self._start(executor, spec, *self._open(spec, chosen, inputs), listener, cancel)
            return self._run_admitted(executor, admission, spec, chosen, inputs, resolve, listener, cancel, wait_for_room)
        finally:
            if self._recovery is not None:
                self._recovery.join(_RECOVERY_S)

    def follow(
        self, execution_id: str, *, listener: Listener | None = None, cancel: threading.Event | None = None
    ) -> ExecutionRecord:
        """Wait for an execution that another process submitted and does not wait for any more, and return its final record.

        Of what it said before, log bytes are passed to the listener again, and messages are not.

        Raises:
            StoreError: Its record cannot be read.
        """
        folder = ExecutionFolder(self.settings.executions_dir, execution_id)
        record = folder.read_record()
        if record.status.is_final:
            return record
        executor = self.executor(record.executor)
        self.store.claim(execution_id, os.getpid(), linux.start_time(os.getpid()) or 0)
        handle = executor.reattach(record.native_id or "", execution_id)
        record = self._follow(executor, handle, folder, listener, cancel, guard=None, announced=False, passed_before=True)
        if record.wants_second_look and record.guard is not None:
            record = record.with_guard(record.guard.not_looked_after("the process that had looked before was lost"))
            with folder.locked():
                record = self._noted(record, folder)
        return record

    def _run_admitted(
        self, executor: AnalysisExecutor, admission: Admission, spec: AnalysisSpec, chosen: ResolvedRuntime,
        inputs: tuple[ResolvedInput, ...], resolve: Callable[[], _Resolved], listener: Listener | None,
        cancel: threading.Event | None, wait_for_room: bool,
    ) -> ExecutionRecord:  # fmt: skip
        admission.check(spec.limits)
        record, prepared = self._open(spec, chosen, inputs)
        try:
            if why := self._enter(admission, spec, prepared.folder, wait_for_room):
                record, prepared = self._wait(admission, why, record, prepared, resolve, listener, cancel)
                if record.status.is_final:
                    return record
            return self._start(executor, spec, record, prepared, listener, cancel, announced=bool(why))
        finally:
            admission.leave(record.execution_id)

    def _resolve(self, spec: AnalysisSpec, executor: AnalysisExecutor, runtime: ResolvedRuntime | None) -> _Resolved:
        """The runtime and the inputs, as they are now."""
        chosen = runtime or catalog.resolve(spec.runtime, self.settings)
        if chosen.runtime.kind not in executor.capabilities.runtime_kinds:
            raise SpecError(f"Executor '{spec.executor}' cannot use runtime '{spec.runtime}' of kind {chosen.runtime.kind}.")
        if spec.folder is not None:
            from forge_orchestration.executions.code import check_code  # a bare command need not wait for what it loads

            check_code(Path(spec.folder), spec.files)
        own = spec.folder if not spec.files else None  # else not all of it is copied
        return chosen, tuple(
            resolve_input(name, self._pinned(source, spec), self.settings, chosen.site_packages, self.store, own)
            for name, source in spec.inputs.items()
        )

    def _pinned(self, source: str, spec: AnalysisSpec) -> str:
        run_ids = [spec.dagster_run_id] if spec.dagster_run_id is not None else []
        return upstream.pinned(source, self.store, self.settings.executions_dir, run_ids, spec.partition)

    def _enter(self, admission: Admission, spec: AnalysisSpec, folder: ExecutionFolder, wait_for_room: bool) -> str:
        """Claim a place; returns what it waits for, if it has to."""
        try:
            why = admission.enter(folder.id, spec.limits, spec.priority, folder.path)
            if why and not wait_for_room:
                raise BackendUnavailableError(f"There is no room for the execution now: {why}.", "Try again later, or let it wait.")
        except BaseException:
            self._forget(folder)
            raise
        return why

    def _wait(
        self, admission: Admission, why: str, record: ExecutionRecord, prepared: PreparedExecution,
        resolve: Callable[[], _Resolved], listener: Listener | None, cancel: threading.Event | None,
    ) -> tuple[ExecutionRecord, PreparedExecution]:  # fmt: skip
        """Wait until the execution may start; its record is final then if it may not any more."""
        folder = prepared.folder
        try:
            record = self._noted(record, folder, message=f"Waiting for room: {why}.")
            if listener is not None:
                listener.on_started(record)
            if not admission.wait(folder.id, cancel):
                return self._close_unstarted(record, prepared, EndReason.CANCELED, "Canceled before it began."), prepared
            # what was looked at when it came may have changed since
            chosen, inputs = resolve()
            facts = _runtime_facts(chosen, record.chosen_by)
            record = self._noted(record, folder, message="", runtime=facts, inputs=[item.facts for item in inputs])
        except ForgeError as error:
            reason = EndReason.RUNTIME_UNHEALTHY if isinstance(error, RuntimeCatalogError) else EndReason.EXECUTOR_ERROR
            return self._close_unstarted(record, prepared, reason, str(error)), prepared
        except BaseException:
            self._close_unstarted(record, prepared, EndReason.CANCELED, "Canceled before it began.")
            raise
        return record, PreparedExecution(folder=folder, runtime=chosen, inputs=inputs)

    def _start(
        self, executor: AnalysisExecutor, spec: AnalysisSpec, record: ExecutionRecord, prepared: PreparedExecution,
        listener: Listener | None, cancel: threading.Event | None, *, announced: bool = False,
    ) -> ExecutionRecord:  # fmt: skip
        guard = self._guard(spec, prepared.folder)
        if guard is not None:
            record = self._look_before(guard, record, prepared, None if announced else listener, cancel)
            announced = True
            if record.status.is_final:
                return record
        try:
            handle = executor.submit(spec, prepared)
        except ForgeError as error:
            record = self._close_unstarted(record, prepared, EndReason.EXECUTOR_ERROR, str(error))
            record = self._look_after(guard, record, prepared.folder)  # it may have run before it was given up
            with contextlib.suppress(ForgeError, OSError):  # what cannot be removed now is left to `forge gc`
                executor.cleanup(ExecutionHandle(execution_id=record.execution_id, native_id=""))
            return record
        return self._follow(executor, handle, prepared.folder, listener, cancel, announced, guard)

    def _open(
        self, spec: AnalysisSpec, runtime: ResolvedRuntime, inputs: tuple[ResolvedInput, ...]
    ) -> tuple[ExecutionRecord, PreparedExecution]:
        """The execution's row, folder and first record."""
        folder = ExecutionFolder(self.settings.executions_dir, new_execution_id())
        record = ExecutionRecord(
            execution_id=folder.id, analysis=spec.name, attempt=spec.attempt, previous_execution_id=spec.previous_execution_id,
            executor=spec.executor, host=os.uname().nodename, dagster_run_id=spec.dagster_run_id, dagster_step_key=spec.dagster_step_key,
            partition=spec.partition,
            runtime=_runtime_facts(runtime, spec.chosen_by), command=spec.command, parameters=dict(spec.params), seed=spec.seed,
            threads=spec.threads, chosen_by=spec.chosen_by, inputs=[item.facts for item in inputs], limits=spec.limits,
            queued_at=time.time(), folder=str(folder.path),
            logs={stream: LogFacts(path=str(folder.log(stream))) for stream in ("stdout", "stderr")},
        )  # fmt: skip
        self._check_room()
        self.store.begin(record, os.getpid(), linux.start_time(os.getpid()) or 0)
        try:
            folder.create()
            code: CodeFacts | None = None
            if spec.folder is not None:
                from forge_orchestration.executions.code import snapshot_code

                code = snapshot_code(Path(spec.folder), folder.analysis, spec.files, is_function=bool(spec.function))
            record = msgspec.structs.replace(record, code=code)
            folder.write_record(record)
        except BaseException as error:
            self._forget(folder)
            if isinstance(error, OSError):
                raise _not_written(folder, error) from error
            raise
        return record, PreparedExecution(folder=folder, runtime=runtime, inputs=inputs)

    def _follow(
        self, executor: AnalysisExecutor, handle: ExecutionHandle, folder: ExecutionFolder, listener: Listener | None,
        cancel: threading.Event | None, announced: bool, guard: Guard | None, passed_before: bool = False,
    ) -> ExecutionRecord:  # fmt: skip
        self._recover(executor)
        feed = _Feed(executor, handle, listener, passed_before)
        look_s = _LOOK_S if listener is not None or cancel is not None else None
        canceled = False
        try:
            if listener is not None and not announced:
                listener.on_started(folder.read_record())
            while not executor.wait(handle, look_s).is_final:
                feed.pass_on()
                if cancel is not None and cancel.is_set() and not canceled:
                    canceled = True
                    executor.cancel(handle)
            feed.pass_on()
        except BaseException:
            executor.cancel(handle)
            executor.wait(handle)
            raise
        finally:
            record = self._look_after(guard, folder.read_record(), folder)
            with contextlib.suppress(StoreError):  # the record is the truth; the next start puts the row right
                self.store.save(record)
        return record

    def _guard(self, spec: AnalysisSpec, folder: ExecutionFolder) -> Guard | None:
        """What looks at what the deployment guards before and after this execution; None if it is not one of those."""
        if not self.settings.guard.picks(spec.name, spec.group, spec.tags):
            return None
        from forge_orchestration.health.guard import Guard  # only who is guarded waits for what it loads

        return Guard(self.settings, folder.id)

    def _look_before(
        self, guard: Guard, record: ExecutionRecord, prepared: PreparedExecution, listener: Listener | None,
        cancel: threading.Event | None,
    ) -> ExecutionRecord:  # fmt: skip
        """The record is final then if what is guarded could not be looked at, or if it was canceled meanwhile."""
        try:
            record = self._noted(record, prepared.folder, message=f"Looking at {guard} before the start.")
            if listener is not None:
                listener.on_started(record)
            record = self._noted(record.with_guard(guard.look_before()), prepared.folder, message="")
            if cancel is not None and cancel.is_set():
                return self._close_unstarted(record, prepared, EndReason.CANCELED, "Canceled before it began.")
        except ForgeError as error:
            return self._close_unstarted(record, prepared, EndReason.SANDBOX_UNAVAILABLE, str(error))
        except BaseException:
            self._close_unstarted(record, prepared, EndReason.CANCELED, "Canceled before it began.")
            raise
        return record

    def _look_after(self, guard: Guard | None, record: ExecutionRecord, folder: ExecutionFolder) -> ExecutionRecord:
        """The second look, if it was guarded and has run and ended; whatever comes of it is in the record."""
        if guard is None or not record.status.is_final or not record.wants_second_look:
            return record
        assert record.guard is not None
        facts = record.guard.not_looked_after("the look was interrupted")
        try:
            facts = guard.look_after(self.store)
        except ForgeError as error:
            facts = record.guard.not_looked_after(str(error))
        finally:
            record = record.with_guard(facts)
            try:
                with folder.locked():  # its supervisor writes no more
                    folder.write_record(record)
            except OSError as error:
                raise _not_written(folder, error) from error
        return record

    def _recover(self, executor: AnalysisExecutor) -> None:
        """Once an engine: while its first execution runs, and so off its path, put right what dead processes left."""
        with self._lock:
            if self._looked_back:
                return
            self._looked_back = True
        with contextlib.suppress(ForgeError, OSError):  # this execution is none of its concern
            self._recovery = executor.recover(self.store)

    def _close_unstarted(
        self, record: ExecutionRecord, prepared: PreparedExecution, reason: EndReason, message: str
    ) -> ExecutionRecord:
        changes = {"status": reason.status, "end_reason": reason, "message": message, "ended_at": time.time()}
        with prepared.folder.locked():  # a supervisor that came to it after all has ended then, or will find it closed
            there = prepared.folder.read_record()
            if there.status.is_final:
                self.store.save(there)
                return there
            try:
                return self._noted(record, prepared.folder, **changes)
            except StoreError:
                self._forget(prepared.folder)
                raise

    def _noted(self, record: ExecutionRecord, folder: ExecutionFolder, **changes: object) -> ExecutionRecord:
        """The record with these changes, written and indexed."""
        record = msgspec.structs.replace(record, **changes)
        try:
            folder.write_record(record)
        except OSError as error:
            raise _not_written(folder, error) from error
        self.store.save(record)
        return record

    def _check_room(self) -> None:
        space = os.statvfs(self.settings.home)
        if space.f_bavail * space.f_frsize < _LEAST_ROOM_BYTES:
            raise StoreError(
                f"The disk of FORGE_HOME {self.settings.home} is full.", "Make room, or set FORGE_HOME to another disk."
            )

    def _forget(self, folder: ExecutionFolder) -> None:
        """Remove what there is of an execution that never came to be; a row that cannot be removed is left to `forge gc`."""
        folder.remove()
        with contextlib.suppress(StoreError):
            self.store.forget(folder.id)


def _check_recordable(spec: AnalysisSpec) -> None:
    try:
        msgspec.json.encode(spec)
    except (UnicodeEncodeError, TypeError, OverflowError) as error:
        raise SpecError(
            f"The request cannot be recorded, because some of it is not UTF-8 text or a plain number: {error}."
        ) from error


def _runtime_facts(runtime: ResolvedRuntime, chosen_by: Mapping[str, str]) -> RuntimeFacts:
    facts = runtime.runtime
    return RuntimeFacts(
        name=facts.name, kind=facts.kind, build=facts.build, content_digest=facts.content_digest, seal_digest=facts.seal_digest,
        verified_at=runtime.verified_at, chosen_by=chosen_by.get("runtime", "default"), python=facts.python or None,
    )  # fmt: skip


def _not_written(folder: ExecutionFolder, error: OSError) -> StoreError:
    return StoreError(f"The execution's folder {folder.path} cannot be written: {error.strerror}.", "Is the disk full?")


class _Feed:
    """Passes what an execution says to a listener, each byte and message once."""

    def __init__(self, executor: AnalysisExecutor, handle: ExecutionHandle, listener: Listener | None, passed_before: bool) -> None:
        self._executor, self._handle, self._listener = executor, handle, listener
        self._offsets = dict.fromkeys(("messages", "stdout", "stderr"), 0)
        if passed_before:  # the supervisor writes a message as one whole line
            for _ in self._new("messages"):
                pass
        self._rest = b""

    def pass_on(self) -> None:
        """Whatever is new."""
        if self._listener is None:
            return
        for stream in self._offsets:
            for data in self._new(stream):
                if stream == "messages":
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    for line in lines:
                        self._listener.on_message(msgspec.json.decode(line, type=Message))
                else:
                    self._listener.on_log(stream, data)

    def _new(self, stream: str) -> Iterator[bytes]:
        """In pieces: a flood of output is never held as a whole."""
        while data := self._executor.logs(self._handle, stream, self._offsets[stream]):
            self._offsets[stream] += len(data)
            yield data
