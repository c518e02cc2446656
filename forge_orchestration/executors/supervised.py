"""Executions on this host, each under a supervisor of its own: what the executors that work so have in common."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from abc import abstractmethod
from pathlib import Path

import msgspec

from forge_orchestration.errors import HostError, SubmitError
from forge_orchestration.executions.folder import write_atomically
from forge_orchestration.executions.store import Store
from forge_orchestration.executors.admission import Admission
from forge_orchestration.executors.base import ExecutionHandle, ExecutionState, PreparedExecution
from forge_orchestration.executors.planned import PlannedExecutor
from forge_orchestration.executors.recovery import recover_meanwhile
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import Cleanup
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.sandbox.cgroups.find import CgroupSite, Greeting, scope_prefix
from forge_orchestration.sandbox.leftovers import close_in_its_place, remove_leftovers
from forge_orchestration.sandbox.plan import LaunchPlan
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration.sandbox.scratch import Size
from forge_orchestration.sandbox.spawn import take_spawner
from forge_orchestration.sandbox.standby import Hello
from forge_orchestration.settings import Settings

_START_TIMEOUT_S = 30.0


class _Spawner:
    """The spawner of this controller, asked for executions one at a time."""

    def __init__(self, hello: Hello) -> None:
        try:
            self._process = take_spawner()
            self._socket = self._process.socket
            self._socket.settimeout(_START_TIMEOUT_S)
            self._socket.send(msgspec.json.encode(hello))
        except OSError as error:
            raise HostError(f"The spawner cannot be started: {error}.", "See: forge doctor") from error
        self._parent = hello.parent
        self._lock = threading.Lock()
        self._greeting: Greeting | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def site(self) -> CgroupSite:
        """Where executions get their groups; waits for the spawner to be ready.

        Raises:
            HostError: It cannot make any, or did not start.
        """
        with self._lock:
            if self._greeting is None:
                try:
                    self._greeting = msgspec.json.decode(self._socket.recv(1 << 16), type=Greeting)
                except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
                    self.close()
                    remedy = "See: forge doctor"
                    if scope_prefix(self._parent):  # systemd-run, most likely
                        remedy += (
                            "; for a user without a session of systemd: sudo loginctl enable-linger USER, and set XDG_RUNTIME_DIR"
                        )
                    raise HostError("The spawner did not start.", remedy) from error
        if self._greeting.site is None:
            self.close()
            raise HostError(self._greeting.error, self._greeting.hint)
        return self._greeting.site

    def start(self, folder: Path) -> socket.socket:
        """Have a supervisor take the execution in `folder`; returns the socket to it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with self._lock:
                socket.send_fds(self._socket, [os.fsencode(folder)], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise SubmitError(f"The spawner is gone: {error}.") from error
        finally:
            theirs.close()
        return ours

    def close(self) -> None:
        self._process.close()


class SupervisedExecutor(PlannedExecutor):
    """One spawner a process and kind of supervisor, shared by all instances of the same deployment."""

    contained = False
    """Whether its executions are containers of an engine."""
    _spawners: dict[Hello, _Spawner] = {}
    _spawners_lock = threading.Lock()

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._hello = Hello(
            parent=settings.cgroup.parent, identity=settings.identity, scratch_dir=str(settings.scratch_dir),
            size=Size(bytes=settings.defaults.scratch_bytes, files=settings.defaults.files), contained=self.contained,
        )  # fmt: skip
        self._sockets: dict[str, socket.socket] = {}
        self._admissions: dict[str, Admission] = {}

    @abstractmethod
    def plan(self, spec: AnalysisSpec, execution: PreparedExecution, site: CgroupSite) -> LaunchPlan:
        """How to start it."""

    def warm_up(self) -> None:
        self._spawner()

    def check(self) -> None:
        self._spawner().site()

    def admission(self) -> Admission:
        site = self._spawner().site()  # a spawner that was replaced may have another
        if site.parent not in self._admissions:
            self._admissions[site.parent] = Admission(self._settings, site)
        return self._admissions[site.parent]

    def submit(self, spec: AnalysisSpec, execution: PreparedExecution) -> ExecutionHandle:
        folder = execution.folder
        if (there := read_supervisor(folder)) is not None:
            return ExecutionHandle(execution_id=folder.id, native_id=there.native_id)
        spawner = self._spawner()
        plan = self.plan(spec, execution, spawner.site())
        write_atomically(folder.path / "plan.json", msgspec.json.encode(plan))
        connection = spawner.start(folder.path)
        connection.settimeout(_START_TIMEOUT_S)
        try:
            heard = connection.recv(256)
        except OSError as error:
            connection.close()
            raise SubmitError(f"No supervisor started for {folder.id}: {error}.") from error
        if not heard:
            connection.close()
            raise SubmitError(f"The supervisor of {folder.id} ended before it began.", f"See {folder.path}/supervisor.log")
        self._sockets[folder.id] = connection
        return ExecutionHandle(execution_id=folder.id, native_id=heard.decode())

    def wait(self, handle: ExecutionHandle, timeout_s: float | None = None) -> ExecutionState:
        folder = self._folder(handle)
        connection = self._sockets.get(handle.execution_id)
        if connection is not None:
            waiting = select.poll()
            waiting.register(connection, select.POLLIN)
            if not waiting.poll(None if timeout_s is None else timeout_s * 1000):
                return ExecutionState(status=Status.RUNNING)
            self._sockets.pop(handle.execution_id, None)
            connection.close()
        else:
            supervisor = read_supervisor(folder)
            if supervisor is not None and supervisor.is_alive and not supervisor.wait(timeout_s):
                return ExecutionState(status=Status.RUNNING)
        record = folder.read_record()
        if not record.status.is_final:
            # the supervisor is gone without a last word: it was killed
            said = "The supervisor of the execution was killed. Run it again."
            with folder.locked():
                record = close_in_its_place(folder, self._settings, EndReason.EXECUTOR_ERROR, said)
        return ExecutionState(status=record.status)

    def cancel(self, handle: ExecutionHandle) -> None:
        supervisor = read_supervisor(self._folder(handle))
        if supervisor is not None:
            supervisor.send(signal.SIGTERM)

    def cleanup(self, handle: ExecutionHandle) -> Cleanup:
        folder = self._folder(handle)
        with folder.locked():
            return remove_leftovers(folder, self._settings)

    def recover(self, store: Store) -> threading.Thread | None:
        return recover_meanwhile(store, self._settings, self._spawner().site())

    def _spawner(self) -> _Spawner:
        with self._spawners_lock:
            spawner = self._spawners.get(self._hello)
            if spawner is None or not spawner.is_alive:
                spawner = self._spawners[self._hello] = _Spawner(self._hello)
            return spawner
