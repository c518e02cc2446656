"""The engine with an executor that is no sandbox: whatever happens around an execution, its record is final or it never was."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.engine import Engine
from forge_orchestration.errors import HostError, RuntimeCatalogError, SpecError, StoreError, SubmitError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.executors.base import (
    AnalysisExecutor,
    ExecutionHandle,
    ExecutionState,
    ExecutorCapabilities,
    PreparedExecution,
)
from forge_orchestration.health.guard import Guard
from forge_orchestration.model.limits import LIMIT_KEYS, Limits
from forge_orchestration.model.messages import Message
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import Cleanup, ExecutionRecord
from forge_orchestration.model.sections import GuardSettings
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.runtimes.catalog import ResolvedRuntime, Runtime
from forge_orchestration.settings import Settings

SPEC = AnalysisSpec(name="exec", command=("true",), limits=Limits(memory_bytes=2**26))


class FakeExecutor(AnalysisExecutor):
    """Executions that end when they are looked at `looks` times, or are canceled; each look appends to the log."""

    name = "local"
    capabilities = ExecutorCapabilities(limits=frozenset(LIMIT_KEYS), runtime_kinds=frozenset({"venv"}), reattach=False)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.looks = 3
        self.host_error: Exception | None = None
        self.submit_error: Exception | None = None
        self.while_waiting: Callable[[], None] = lambda: None
        self.submitted: list[str] = []
        self.canceled = 0
        self.recoveries: list[threading.Thread] = []

    def recover(self, store: Store) -> threading.Thread | None:
        thread = threading.Thread(target=store.ids)
        thread.start()
        self.recoveries.append(thread)
        return thread

    def check(self) -> None:
        if self.host_error:
            raise self.host_error

    def submit(self, spec: AnalysisSpec, execution: PreparedExecution) -> ExecutionHandle:
        self.submitted.append(execution.folder.id)
        if self.submit_error:
            raise self.submit_error
        folder = execution.folder
        folder.write_record(msgspec.structs.replace(folder.read_record(), started_at=time.time()))
        return ExecutionHandle(execution_id=execution.folder.id, native_id="1")

    def wait(self, handle: ExecutionHandle, timeout_s: float | None = None) -> ExecutionState:
        folder = ExecutionFolder(self._settings.executions_dir, handle.execution_id)
        self.looks -= 1
        with open(folder.log("stdout"), "a") as log:
            log.write(f"look {self.looks}\n")
        with open(folder.messages, "ab") as messages:
            line = msgspec.json.encode(Message(type="progress", fraction=0.5, message=f"{self.looks}")) + b"\n"
            messages.write(line[:10])
            messages.flush()
            messages.write(line[10:])
        if self.looks > 0 and not self.canceled:
            self.while_waiting()
            return ExecutionState(status=Status.RUNNING)
        reason = EndReason.CANCELED if self.canceled else EndReason.COMPLETED
        folder.write_record(msgspec.structs.replace(folder.read_record(), status=reason.status, end_reason=reason, message="Over."))
        return ExecutionState(status=reason.status)

    def poll(self, handle: ExecutionHandle) -> ExecutionState:
        return self.wait(handle, 0)

    def cancel(self, handle: ExecutionHandle) -> None:
        self.canceled += 1

    def logs(self, handle: ExecutionHandle, stream: str, offset: int) -> bytes:
        folder = ExecutionFolder(self._settings.executions_dir, handle.execution_id)
        path = folder.messages if stream == "messages" else folder.log(stream)
        return path.read_bytes()[offset:] if path.exists() else b""

    def collect(self, handle: ExecutionHandle) -> ExecutionRecord:
        raise NotImplementedError

    def reattach(self, native_id: str, execution_id: str) -> ExecutionHandle:
        raise NotImplementedError

    def cleanup(self, handle: ExecutionHandle) -> Cleanup:
        return Cleanup()


class Ears:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.started: list[ExecutionRecord] = []
        self.log = b""
        self.messages: list[str] = []

    def on_started(self, record: ExecutionRecord) -> None:
        self.started.append(record)

    def on_log(self, stream: str, data: bytes) -> None:
        assert stream == "stdout"
        self.log += data

    def on_message(self, message: Message) -> None:
        self.messages.append(message.message)


@pytest.fixture
def engine(settings: Settings) -> Engine:
    made = Engine(settings)
    made._executors["local"] = FakeExecutor(settings)
    return made


@pytest.fixture
def executor(engine: Engine) -> FakeExecutor:
    made = engine.executor("local")
    assert isinstance(made, FakeExecutor)
    return made


@pytest.fixture
def runtime(tmp_path: Path) -> ResolvedRuntime:
    facts = Runtime(
        name="r", kind="venv", build="b", content_digest="c", seal_digest="s", python="3.11.2", base_prefix="/usr", packages={},
        built_at=0.0, build_s=0.0, bytes=0, files=0,
    )  # fmt: skip
    return ResolvedRuntime(
        runtime=facts, prefix=tmp_path, mounts={}, activation={}, site_packages=tmp_path, verified_at=1.0, limits={}
    )


def nothing_is_left(engine: Engine) -> None:
    assert os.listdir(engine.settings.executions_dir) == []
    assert engine.store.ids() == set()


def test_an_execution_is_recorded_from_its_beginning_to_its_end(engine: Engine, runtime: ResolvedRuntime) -> None:
    ears = Ears()
    before = time.time()
    record = engine.run(SPEC, runtime=runtime, listener=ears)
    assert (record.status, record.end_reason, record.message) == (Status.SUCCEEDED, EndReason.COMPLETED, "Over.")
    assert before <= record.queued_at <= time.time()
    assert (record.runtime.name, record.runtime.content_digest, record.runtime.verified_at) == ("r", "c", 1.0)
    assert ears.started[0].status is Status.QUEUED and ears.started[0].execution_id == record.execution_id
    assert engine.store.list()[0]["status"] == "succeeded"


def test_a_listener_hears_each_byte_and_message_once(engine: Engine, runtime: ResolvedRuntime) -> None:
    ears = Ears()
    engine.run(SPEC, runtime=runtime, listener=ears)
    assert ears.log == b"look 2\nlook 1\nlook 0\n"
    assert ears.messages == ["2", "1", "0"]


def test_it_can_be_canceled_from_another_thread(engine: Engine, executor: FakeExecutor, runtime: ResolvedRuntime) -> None:
    executor.looks = 10**6
    cancel = threading.Event()
    executor.while_waiting = cancel.set
    record = engine.run(SPEC, runtime=runtime, cancel=cancel)
    assert record.status is Status.CANCELED and executor.canceled == 1


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, RuntimeError, BrokenPipeError])
def test_an_interruption_cancels_waits_records_and_goes_on(
    engine: Engine, executor: FakeExecutor, runtime: ResolvedRuntime, interruption: type[BaseException]
) -> None:
    executor.looks = 10**6

    def interrupt() -> None:
        raise interruption

    executor.while_waiting = interrupt
    with pytest.raises(interruption):
        engine.run(SPEC, runtime=runtime)
    assert executor.canceled
    assert [row["status"] for row in engine.store.list()] == ["canceled"]


@pytest.mark.parametrize("error", [SubmitError("The spawner is gone."), HostError("No.")])
def test_a_submission_that_fails_has_a_final_record(
    engine: Engine, executor: FakeExecutor, runtime: ResolvedRuntime, error: Exception
) -> None:
    executor.submit_error = error
    record = engine.run(SPEC, runtime=runtime)
    assert (record.status, record.end_reason, record.message) == (Status.FAILED, EndReason.EXECUTOR_ERROR, str(error))
    assert engine.store.list()[0]["status"] == "failed" and engine.store.unfinished() == []
    folder = ExecutionFolder(engine.settings.executions_dir, record.execution_id)
    assert folder.read_record() == record


def test_what_others_left_is_put_right_once_while_the_first_execution_runs(
    engine: Engine, executor: FakeExecutor, runtime: ResolvedRuntime
) -> None:
    seen: list[int] = []
    executor.while_waiting = lambda: seen.append(len(executor.recoveries))
    engine.run(SPEC, runtime=runtime)
    executor.looks = 3
    engine.run(SPEC, runtime=runtime)
    assert set(seen) == {1} and not executor.recoveries[0].is_alive()


def test_a_recovery_that_fails_is_none_of_the_executions_concern(
    engine: Engine, executor: FakeExecutor, runtime: ResolvedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "recover", lambda store: _raise(HostError("No cgroup.")))
    assert engine.run(SPEC, runtime=runtime).succeeded


class TestNothingIsLeft:
    def test_when_the_host_cannot(self, engine: Engine, executor: FakeExecutor, runtime: ResolvedRuntime) -> None:
        executor.host_error = HostError("No bubblewrap.")
        with pytest.raises(HostError):
            engine.run(SPEC, runtime=runtime)
        nothing_is_left(engine)

    @pytest.mark.parametrize(
        "changes",
        [{"limits": Limits(pids=10**6)}, {"executor": "nosuch"}, {"inputs": {"x": "/etc/passwd"}}, {"folder": "/nothing"}],
        ids=lambda value: next(iter(value)),
    )
    def test_when_the_request_is_wrong(self, engine: Engine, runtime: ResolvedRuntime, changes: dict) -> None:
        with pytest.raises(SpecError):
            engine.run(msgspec.structs.replace(SPEC, **changes), runtime=runtime)
        nothing_is_left(engine)

    @pytest.mark.parametrize(
        "changes",
        [{"command": ("echo", "\udcff")}, {"env": {"A": "\udcff"}}, {"outputs": {"\udcff": "a"}}, {"params": {"p": "\udcff"}}],
        ids=lambda value: next(iter(value)),
    )
    def test_when_the_request_could_not_be_recorded(self, engine: Engine, runtime: ResolvedRuntime, changes: dict) -> None:
        with pytest.raises(SpecError, match="UTF-8"):
            engine.run(msgspec.structs.replace(SPEC, **changes), runtime=runtime)
        nothing_is_left(engine)

    def test_when_the_runtime_is_not_built(self, engine: Engine) -> None:
        with pytest.raises(RuntimeCatalogError):
            engine.run(SPEC)
        nothing_is_left(engine)

    def test_when_the_executor_cannot_use_the_runtime(self, engine: Engine, runtime: ResolvedRuntime) -> None:
        other = msgspec.structs.replace(runtime, runtime=msgspec.structs.replace(runtime.runtime, kind="image"))
        with pytest.raises(SpecError, match="cannot use runtime"):
            engine.run(SPEC, runtime=other)
        nothing_is_left(engine)

    def test_when_the_first_record_cannot_be_written(
        self, engine: Engine, executor: FakeExecutor, runtime: ResolvedRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ExecutionFolder, "write_record", _no_space)
        with pytest.raises(StoreError, match="No space left"):
            engine.run(SPEC, runtime=runtime)
        nothing_is_left(engine)
        assert executor.submitted == []

    def test_when_the_store_cannot_forget_either(
        self, engine: Engine, runtime: ResolvedRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then the row stays for `forge gc`, but no folder that looks like an execution."""
        monkeypatch.setattr(ExecutionFolder, "write_record", _no_space)
        monkeypatch.setattr(engine.store, "forget", lambda execution_id: _raise(StoreError("The disk is full.")))
        with pytest.raises(StoreError):
            engine.run(SPEC, runtime=runtime)
        assert os.listdir(engine.settings.executions_dir) == []

    def test_when_neither_plan_nor_last_record_can_be_written(
        self, engine: Engine, executor: FakeExecutor, runtime: ResolvedRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def submit(spec: AnalysisSpec, execution: PreparedExecution) -> ExecutionHandle:
            monkeypatch.setattr(ExecutionFolder, "write_record", _no_space)
            raise SubmitError("The plan cannot be written.")

        monkeypatch.setattr(executor, "submit", submit)
        with pytest.raises(StoreError):
            engine.run(SPEC, runtime=runtime)
        nothing_is_left(engine)

    def test_when_the_disk_is_full(self, engine: Engine, runtime: ResolvedRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
        space = os.statvfs(engine.settings.home)
        full = os.statvfs_result((space.f_bsize, space.f_frsize, space.f_blocks, 5, 5, *tuple(space)[5:]))
        monkeypatch.setattr(os, "statvfs", lambda path: full)
        with pytest.raises(StoreError, match="full"):
            engine.run(SPEC, runtime=runtime)
        nothing_is_left(engine)

    def test_when_anything_else_is_wrong(self, engine: Engine, runtime: ResolvedRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ExecutionFolder, "write_record", lambda self, record: _raise(RuntimeError("a bug")))
        with pytest.raises(RuntimeError):
            engine.run(SPEC, runtime=runtime)
        nothing_is_left(engine)


class TestGuarded:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        (tmp_path / "reference").write_text("genome")
        return tmp_path / "reference"

    @pytest.fixture
    def guarded(self, engine: Engine, path: Path) -> Engine:
        guard = GuardSettings(analyses=("exec",), paths=(path,))
        engine.settings = msgspec.structs.replace(engine.settings, guard=guard)
        return engine

    def test_it_is_looked_at_before_and_after(
        self, guarded: Engine, executor: FakeExecutor, runtime: ResolvedRuntime, path: Path
    ) -> None:
        executor.while_waiting = lambda: path.write_text("changed") and None
        ears = Ears()
        record = guarded.run(SPEC, runtime=runtime, listener=ears)
        assert [(one.status, one.message) for one in ears.started] == [
            (Status.QUEUED, "Looking at 1 guarded path before the start."),
        ]  # fmt: skip
        assert record.succeeded and not record.suspect and record.guard is not None, "the analysis is not to blame"
        assert record.queued_at <= record.guard.before_at <= (record.started_at or 0) <= (record.guard.after_at or 0)
        assert [(one.target, one.verdict) for one in record.guard.findings] == [(str(path), "changed")]
        assert ExecutionFolder(guarded.settings.executions_dir, record.execution_id).read_record() == record
        assert guarded.store.list()[0]["status"] == "succeeded"

    def test_another_analysis_is_not(self, guarded: Engine, runtime: ResolvedRuntime) -> None:
        record = guarded.run(msgspec.structs.replace(SPEC, name="other", group="exec", tags=("exec",)), runtime=runtime)
        assert record.succeeded and record.guard is None

    def test_what_cannot_be_looked_at_refuses_it(
        self, guarded: Engine, executor: FakeExecutor, runtime: ResolvedRuntime, path: Path
    ) -> None:
        path.unlink()
        record = guarded.run(SPEC, runtime=runtime)
        assert (record.status, record.end_reason) == (Status.REFUSED, EndReason.SANDBOX_UNAVAILABLE)
        assert str(path) in record.message and "nothing was started" in record.message and executor.submitted == []
        assert guarded.store.list()[0]["status"] == "refused"

    @pytest.mark.parametrize("how", ["canceled", "interrupted"])
    def test_one_that_is_ended_during_the_first_look_never_begins(
        self, guarded: Engine, executor: FakeExecutor, runtime: ResolvedRuntime, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        cancel, messages = threading.Event(), []
        real = Guard.look_before

        def look(guard: Guard) -> object:
            messages.append(ExecutionFolder(guarded.settings.executions_dir, guard._execution_id).read_record().message)
            if how == "interrupted":
                raise KeyboardInterrupt
            cancel.set()
            return real(guard)

        monkeypatch.setattr(Guard, "look_before", look)
        if how == "interrupted":
            with pytest.raises(KeyboardInterrupt):
                guarded.run(SPEC, runtime=runtime, cancel=cancel)
        else:
            record = guarded.run(SPEC, runtime=runtime, cancel=cancel)
            assert record.guard is not None and record.guard.after_at is None and record.guard.findings == []
        assert messages == ["Looking at 1 guarded path before the start."]
        assert executor.submitted == [] and guarded.store.list()[0]["status"] == "canceled"

    def test_one_that_is_not_started_is_not_looked_at_afterwards(
        self, guarded: Engine, executor: FakeExecutor, runtime: ResolvedRuntime, path: Path
    ) -> None:
        executor.submit_error = SubmitError("No.")
        record = guarded.run(SPEC, runtime=runtime)
        assert record.status is Status.FAILED and record.guard is not None
        assert (record.guard.after_at, record.guard.findings, record.wants_second_look) == (None, [], False)

    def test_canceled_while_it_runs_is_looked_at(
        self, guarded: Engine, executor: FakeExecutor, runtime: ResolvedRuntime, path: Path
    ) -> None:
        executor.looks, cancel = 10**6, threading.Event()

        def meanwhile() -> None:
            path.unlink(missing_ok=True)
            cancel.set()

        executor.while_waiting = meanwhile
        record = guarded.run(SPEC, runtime=runtime, cancel=cancel)
        assert record.status is Status.CANCELED and record.guard is not None
        assert [one.verdict for one in record.guard.findings] == ["changed"]

    def test_an_interrupted_second_look_says_so(
        self, guarded: Engine, runtime: ResolvedRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def look(guard: Guard, store: Store) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Guard, "look_after", look)
        with pytest.raises(KeyboardInterrupt):
            guarded.run(SPEC, runtime=runtime)
        record = ExecutionFolder(guarded.settings.executions_dir, str(guarded.store.list()[0]["execution_id"])).read_record()
        assert record.succeeded and record.suspect and record.guard is not None
        assert record.guard.why_not_after == "the look was interrupted" and record.guard.after_at is None
        assert [one.what for one in record.guard.findings] == ["not looked at afterwards: the look was interrupted"]

    def test_a_second_look_that_cannot_be_made_says_why(
        self, guarded: Engine, runtime: ResolvedRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Guard, "look_after", lambda guard, store: _raise(RuntimeCatalogError("No seal.")))
        record = guarded.run(SPEC, runtime=runtime)
        assert record.succeeded and record.suspect and record.guard is not None and record.guard.why_not_after == "No seal."

    def test_a_second_look_that_cannot_be_written_is_left_to_recovery(
        self, guarded: Engine, runtime: ResolvedRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = Guard.look_after

        def look(guard: Guard, store: Store) -> object:
            monkeypatch.setattr(ExecutionFolder, "write_record", _no_space)
            return real(guard, store)

        monkeypatch.setattr(Guard, "look_after", look)
        with pytest.raises(StoreError, match="No space left"):
            guarded.run(SPEC, runtime=runtime)
        assert len(guarded.store.unfinished()) == 1


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def _raise(error: Exception) -> None:
    raise error
