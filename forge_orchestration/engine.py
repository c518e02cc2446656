"""The one way in which an analysis is run: the CLI, Dagster and `forge_orchestration.run()` all come through here."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from forge_orchestration.errors import BackendUnavailableError, ForgeError, RuntimeCatalogError, SpecError, StoreError
from forge_orchestration.executions import publication, upstream
from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id, write_atomically
from forge_orchestration.executions.inputs import ResolvedInput, fetch_input, resolve_inputs
from forge_orchestration.executions.journal import Journal, not_written
from forge_orchestration.executions.store import Store
from forge_orchestration.executors.admission import Admission
from forge_orchestration.executors.base import AnalysisExecutor, ExecutionHandle, PreparedExecution
from forge_orchestration.executors.feed import Feed, Listener
from forge_orchestration.executors.recovery import controller_lives, has_ended_elsewhere, somebody_is_there
from forge_orchestration.executors.registry import make_executor
from forge_orchestration.model.limits import check_limits
from forge_orchestration.model.publication import Publication
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.record import CacheFacts, CodeFacts, ExecutionRecord, LogFacts, RuntimeFacts
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.resume import checkpoint, reuse
from forge_orchestration.resume.fingerprint import Fingerprint
from forge_orchestration.resume.results import Found, ResultGone, find_result, reuse_result
from forge_orchestration.runtimes import catalog
from forge_orchestration.runtimes.catalog import ResolvedRuntime
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.process_identity import runs_elsewhere
from forge_orchestration.settings import Settings, make_home

if TYPE_CHECKING:
    from forge_orchestration.health.guard import Guard

_Resolved = tuple[ResolvedRuntime, tuple[ResolvedInput, ...]]
_LOOK_S = 0.1
_CONFIRMED_WITHIN_S = 60.0  # after its end a result is said to be reusable, or not
_RECOVERY_S = 2.0  # a short execution waits at most so long for what dead ones left; the rest is for the next start


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

    @property
    def _journal(self) -> Journal:
        return Journal(self.settings.home, self.store)

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
        publication.check_targets(spec.publish, self.settings)
        record = self._run(spec, listener=listener, cancel=cancel, runtime=runtime, wait_for_room=wait_for_room)
        return self.publish(record, spec.publish, cancel=cancel)

    def _run(
        self, spec: AnalysisSpec, *, listener: Listener | None, cancel: threading.Event | None, runtime: ResolvedRuntime | None = None,
        wait_for_room: bool,
    ) -> ExecutionRecord:  # fmt: skip
        _check_recordable(spec)
        executor = self.executor(spec.executor)
        executor.warm_up()
        check_limits(spec.limits, self.settings.maximum)
        resolve = functools.partial(self._resolve, spec, executor, runtime)
        chosen, inputs = resolve()
        wanted = reuse.fingerprint(spec, chosen, inputs, self.settings, self.store)
        found = reuse.find(spec, wanted, self.settings, self.store)
        try:
            if found.record is not None:
                with contextlib.suppress(ResultGone):  # removed or changed in this very moment
                    return self._reuse(found, *self._open(spec, chosen, inputs, wanted, runs=False), listener)
            executor.check()
            admission = executor.admission()
            if admission is not None:
                admission.check(spec.limits)
            if spec.cache != "only":
                inputs = self._fetch(inputs, cancel)
            record, prepared = self._open(spec, chosen, inputs, wanted, found.damage)
            if spec.cache in ("use", "only"):
                record = self._wait_for_twin(spec, record, prepared, listener, cancel, wait_for_room)
                if record.status.is_final:
                    return record
            if admission is None:
                return self._start(executor, spec, record, prepared, listener, cancel)
            return self._run_admitted(executor, admission, spec, record, prepared, resolve, listener, cancel, wait_for_room)
        finally:
            if self._recovery is not None:
                self._recovery.join(_RECOVERY_S)

    def fingerprint(self, spec: AnalysisSpec) -> Fingerprint:
        """What would decide the result of an analysis if it were run now.

        Raises:
            ForgeError: It could not be run: the request, the host or the runtime is at fault.
        """
        check_limits(spec.limits, self.settings.maximum)
        chosen, inputs = self._resolve(spec, self.executor(spec.executor), None)
        found = reuse.fingerprint(spec, chosen, inputs, self.settings, self.store)
        assert found is not None, "a bare command has none"
        return found

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
            return self.publish_pending(record, cancel=cancel)
        executor = self.executor(record.executor)
        self.store.claim(execution_id, os.getpid(), linux.start_time(os.getpid()) or 0)
        handle = executor.reattach(record.native_id or "", execution_id)
        record = self._follow(executor, handle, folder, listener, cancel, guard=None, announced=False, passed_before=True)
        if record.wants_second_look and record.guard is not None:
            record = record.with_guard(record.guard.not_looked_after("the process that had looked before was lost"))
            with folder.locked():
                record = self._journal.note(record, folder)
        return self.publish_pending(record, cancel=cancel)

    def publish(
        self, record: ExecutionRecord, publications: Mapping[str, Publication], *, cancel: threading.Event | None = None, force: bool = False,
        patient: bool = True,
    ) -> ExecutionRecord:  # fmt: skip
        """Publish what an execution has made, unless it is published already; returns the record with what has become of each.

        Args:
            force: Also if the execution is suspect.
            patient: Whether a database that does not answer is tried again for a while.
        """
        if not publications:
            return record
        folder = ExecutionFolder(self.settings.executions_dir, record.execution_id)
        if record.succeeded:
            published = publication.publish(record, publications, self.settings, self.store, cancel, force=force, patient=patient)
            if published != record.published:
                record = msgspec.structs.replace(record, published=published)
                self._journal.add(record, folder)
        if record.status.is_final and not record.unpublished:
            publication.unmark(record.execution_id, self.settings)
        return record

    def publish_pending(
        self, record: ExecutionRecord, *, cancel: threading.Event | None = None, force: bool = False, patient: bool = True
    ) -> ExecutionRecord:
        """Publish what an execution was to publish and has not, as it was asked for then; returns the record as it is now."""
        if record.execution_id not in publication.marked(self.settings):
            return record
        folder = ExecutionFolder(self.settings.executions_dir, record.execution_id)
        try:
            spec = msgspec.json.decode(folder.request.read_bytes(), type=AnalysisSpec)
        except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
            raise StoreError(f"What execution {record.execution_id} was to publish is not known any more: {error}.") from error
        return self.publish(record, spec.publish, cancel=cancel, force=force, patient=patient)

    def _run_admitted(
        self, executor: AnalysisExecutor, admission: Admission, spec: AnalysisSpec, record: ExecutionRecord,
        prepared: PreparedExecution, resolve: Callable[[], _Resolved], listener: Listener | None,
        cancel: threading.Event | None, wait_for_room: bool,
    ) -> ExecutionRecord:  # fmt: skip
        try:
            if why := self._enter(admission, spec, prepared.folder, wait_for_room):
                record, prepared = self._wait(admission, why, spec, record, prepared, resolve, listener, cancel)
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
        own = spec.folder if not spec.function else None  # of a function's folder only its module is its own
        return chosen, tuple(
            item
            for name, source in spec.inputs.items()
            for item in resolve_inputs(name, self._pinned(source, spec), self.settings, chosen.site_packages, self.store, own)
        )

    def _fetch(self, inputs: tuple[ResolvedInput, ...], cancel: threading.Event | None) -> tuple[ResolvedInput, ...]:
        """With a file for each; what was fetched earlier is there already."""
        return tuple(item if item.is_here else fetch_input(item, self.settings, self.store, cancel) for item in inputs)

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
            self._journal.forget(folder)
            raise
        return why

    def _wait(
        self, admission: Admission, why: str, spec: AnalysisSpec, record: ExecutionRecord, prepared: PreparedExecution,
        resolve: Callable[[], _Resolved], listener: Listener | None, cancel: threading.Event | None,
    ) -> tuple[ExecutionRecord, PreparedExecution]:  # fmt: skip
        """Wait until the execution may start; its record is final then if it may not any more."""
        folder = prepared.folder
        try:
            record = self._journal.note(record, folder, message=f"Waiting for room: {why}.")
            if listener is not None:
                listener.on_started(record)
            if not admission.wait(folder.id, cancel):
                return self._journal.close_unstarted(
                    record, prepared.folder, EndReason.CANCELED, "Canceled before it began."
                ), prepared
            # what was looked at when it came may have changed since
            chosen, inputs = resolve()
            inputs = self._fetch(inputs, cancel)
            reuse.keep_inputs(inputs, folder)
            now = reuse.fingerprint(spec, chosen, inputs, self.settings, self.store, reuse.code_parts(record))
            record = self._journal.note(
                record, folder, message="", runtime=_runtime_facts(chosen, record.chosen_by), inputs=[item.facts for item in inputs],
                **_fingerprint_facts(now),
            )  # fmt: skip
        except ForgeError as error:
            reason = EndReason.RUNTIME_UNHEALTHY if isinstance(error, RuntimeCatalogError) else EndReason.EXECUTOR_ERROR
            return self._journal.close_unstarted(record, prepared.folder, reason, str(error)), prepared
        except BaseException:
            self._journal.close_unstarted(record, prepared.folder, EndReason.CANCELED, "Canceled before it began.")
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
        prepared = msgspec.structs.replace(prepared, checkpoint=checkpoint.plan_of(spec, record.fingerprint, self.settings))
        try:
            handle = executor.submit(spec, prepared)
        except (ForgeError, OSError) as error:
            record = self._journal.close_unstarted(record, prepared.folder, EndReason.EXECUTOR_ERROR, str(error))
            record = self._look_after(guard, record, prepared.folder)  # it may have run before it was given up
            with contextlib.suppress(ForgeError, OSError):  # what cannot be removed now is left to `forge gc`
                executor.cleanup(ExecutionHandle(execution_id=record.execution_id, native_id=""))
            return record
        return self._follow(executor, handle, prepared.folder, listener, cancel, announced, guard)

    def _reuse(
        self, found: Found, record: ExecutionRecord, prepared: PreparedExecution, listener: Listener | None
    ) -> ExecutionRecord:
        """Give the execution the result that was found, which ends it.

        Raises:
            ResultGone: It is no longer what was found; the execution is forgotten.
        """
        assert found.record is not None
        folder = prepared.folder
        try:
            with folder.locked():
                record = reuse_result(found.record, record, folder, self.store, found.damage)
                record = self._journal.note(record, folder)
        except BaseException as error:
            self._journal.forget(folder)
            if isinstance(error, OSError):
                raise not_written(folder, error) from error
            raise
        if listener is not None:
            listener.on_started(record)
        return record

    def _wait_for_twin(
        self, spec: AnalysisSpec, record: ExecutionRecord, prepared: PreparedExecution, listener: Listener | None,
        cancel: threading.Event | None, wait_for_room: bool,
    ) -> ExecutionRecord:  # fmt: skip
        """While others that began earlier compute the very same, wait for them, and take what they have made.

        Each waits for those before it alone, so that no two wait for each other.
        """
        folder = prepared.folder
        fingerprint = record.fingerprint
        assert fingerprint is not None
        try:
            while (twin := self._twin(fingerprint, folder)) is not None:
                if not wait_for_room:
                    raise BackendUnavailableError(
                        f"Execution {twin} computes the very same now.", "Try again later, or let it wait."
                    )
                if not record.message:
                    record = self._journal.note(
                        record, folder, message=f"Waiting for execution {twin}, which computes the very same."
                    )
                    if listener is not None:
                        listener.on_started(record)
                if cancel is not None and cancel.is_set():
                    return self._journal.close_unstarted(record, prepared.folder, EndReason.CANCELED, "Canceled before it began.")
                time.sleep(_LOOK_S)
            found = find_result(fingerprint, self.store, self.settings.executions_dir)
            if found.record is None and spec.cache == "only":
                raise SpecError(
                    f"There is no earlier result of '{spec.name}' that could be reused, and nothing else was asked for.{_after(found.damage)}",
                    f"See why: forge why {spec.name}",
                )
            if found.record is None and record.message:
                record = self._journal.note(record, folder, message="")
        except ForgeError:
            self._journal.forget(folder)
            raise
        except BaseException:
            self._journal.close_unstarted(record, prepared.folder, EndReason.CANCELED, "Canceled before it began.")
            raise
        if found.record is None:
            return record
        try:
            return self._reuse(found, record, prepared, listener)
        except ResultGone:
            return self._run(spec, listener=listener, cancel=cancel, wait_for_room=wait_for_room)

    def _twin(self, fingerprint: str, folder: ExecutionFolder) -> str | None:
        for execution_id in self.store.twins_before(fingerprint, folder.id):
            other = ExecutionFolder(self.settings.executions_dir, execution_id)
            with contextlib.suppress(ForgeError):
                record = other.read_record()
                # its row does not say so yet; of a success it soon will, unless its controller forgot it
                if record.status.is_final and (not record.succeeded or time.time() - (record.ended_at or 0) > _CONFIRMED_WITHIN_S):
                    continue
            if not somebody_is_there(other, self.store):
                continue
            if runs_elsewhere(other) and not controller_lives(self.store.controller(execution_id)):
                with contextlib.suppress(ForgeError):  # nobody waits for it, and nobody else would ask
                    if has_ended_elsewhere(other, self.settings):
                        continue
            return execution_id
        return None

    def _open(
        self, spec: AnalysisSpec, runtime: ResolvedRuntime, inputs: tuple[ResolvedInput, ...], wanted: Fingerprint | None,
        damage: str = "", *, runs: bool = True,
    ) -> tuple[ExecutionRecord, PreparedExecution]:  # fmt: skip
        """The execution's row, folder and first record.

        Args:
            damage: What is wrong with earlier results of the same.
            runs: Whether it is to be run; else it needs no copy of the analysis' files.
        """
        folder = ExecutionFolder(self.settings.executions_dir, new_execution_id())
        record = ExecutionRecord(
            execution_id=folder.id, analysis=spec.name, attempt=spec.attempt, previous_execution_id=spec.previous_execution_id,
            executor=spec.executor, host=os.uname().nodename, dagster_run_id=spec.dagster_run_id, dagster_step_key=spec.dagster_step_key,
            partition=spec.partition,
            runtime=_runtime_facts(runtime, spec.chosen_by), command=spec.command, parameters=dict(spec.params), seed=spec.seed,
            threads=spec.threads, chosen_by=spec.chosen_by, inputs=[item.facts for item in inputs], limits=spec.limits,
            cache=CacheFacts(policy=spec.cache, why=damage),
            fingerprint=wanted.digest if wanted is not None else None, fingerprint_parts=wanted.parts if wanted is not None else {},
            queued_at=time.time(), folder=str(folder.path),
            logs={stream: LogFacts(path=str(folder.log(stream))) for stream in ("stdout", "stderr")},
        )  # fmt: skip
        self._journal.begin(record, os.getpid(), linux.start_time(os.getpid()) or 0)
        try:
            folder.create()
            code: CodeFacts | None = None
            if spec.folder is not None and runs:
                from forge_orchestration.executions.code import snapshot_code

                code, copied = snapshot_code(Path(spec.folder), folder.analysis, spec.files, is_function=bool(spec.function))
                if copied != reuse.code_parts(record):  # a file was edited since it was looked at: what is copied is what counts
                    wanted = reuse.fingerprint(spec, runtime, inputs, self.settings, self.store, copied)
            if spec.publish:
                publication.mark(folder.id, self.settings)
            if runs or spec.publish:
                write_atomically(folder.request, msgspec.json.encode(spec))
            if runs:
                reuse.keep_inputs(inputs, folder)
                unused = checkpoint.unused(spec, wanted, self.settings, self.store)
                record = msgspec.structs.replace(record, code=code, checkpoint=unused, **_fingerprint_facts(wanted))
                folder.write_record(record)
        except BaseException as error:
            self._journal.forget(folder)
            if isinstance(error, OSError):
                raise not_written(folder, error) from error
            raise
        return record, PreparedExecution(folder=folder, runtime=runtime, inputs=inputs)

    def _follow(
        self, executor: AnalysisExecutor, handle: ExecutionHandle, folder: ExecutionFolder, listener: Listener | None,
        cancel: threading.Event | None, announced: bool, guard: Guard | None, passed_before: bool = False,
    ) -> ExecutionRecord:  # fmt: skip
        self._recover(executor)
        feed = Feed(executor, handle, listener, passed_before)
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
            record = self._confirm(self._look_after(guard, folder.read_record(), folder), folder)
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
            record = self._journal.note(record, prepared.folder, message=f"Looking at {guard} before the start.")
            if listener is not None:
                listener.on_started(record)
            record = self._journal.note(record.with_guard(guard.look_before()), prepared.folder, message="")
            if cancel is not None and cancel.is_set():
                return self._journal.close_unstarted(record, prepared.folder, EndReason.CANCELED, "Canceled before it began.")
        except ForgeError as error:
            return self._journal.close_unstarted(record, prepared.folder, EndReason.SANDBOX_UNAVAILABLE, str(error))
        except BaseException:
            self._journal.close_unstarted(record, prepared.folder, EndReason.CANCELED, "Canceled before it began.")
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
            self._journal.add(record, folder)
        return record

    def _confirm(self, record: ExecutionRecord, folder: ExecutionFolder) -> ExecutionRecord:
        """With whether the result may be reused, if that can be found out now."""
        try:
            confirmed = reuse.confirmed(record, folder, self.store)
            if confirmed is not record:
                self._journal.add(confirmed, folder)
        except StoreError:  # it has ended well all the same; `forge gc` looks again
            return record
        checkpoint.forget(confirmed, self.settings)
        return confirmed

    def _recover(self, executor: AnalysisExecutor) -> None:
        """Once an engine: while its first execution runs, and so off its path, put right what dead processes left."""
        with self._lock:
            if self._looked_back:
                return
            self._looked_back = True
        with contextlib.suppress(ForgeError, OSError):  # this execution is none of its concern
            self._recovery = executor.recover(self.store)


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


def _after(sentence: str) -> str:
    return f" {sentence}" if sentence else ""


def _fingerprint_facts(fingerprint: Fingerprint | None) -> dict[str, object]:
    return {"fingerprint": fingerprint.digest, "fingerprint_parts": fingerprint.parts} if fingerprint is not None else {}
