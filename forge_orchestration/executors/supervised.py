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

from forge_orchestration.errors import ExecutorError, HostError, SubmitError
from forge_orchestration.executions import forge_checkpoint
from forge_orchestration.executions.folder import ExecutionFolder, write_atomically
from forge_orchestration.executions.messages import pipes_environment
from forge_orchestration.executions.store import Store
from forge_orchestration.executors.admission import Admission
from forge_orchestration.executors.base import LOG_READ_BYTES, AnalysisExecutor, ExecutionHandle, ExecutionState, PreparedExecution
from forge_orchestration.executors.recovery import recover_meanwhile
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import Cleanup, ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.sandbox import view
from forge_orchestration.sandbox.cgroups.find import CgroupSite, Greeting, scope_prefix
from forge_orchestration.sandbox.leftovers import close_in_its_place, remove_leftovers
from forge_orchestration.sandbox.plan import Bind, ContainerPlan, LaunchPlan
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration.sandbox.scratch import Size
from forge_orchestration.sandbox.spawn import take_spawner
from forge_orchestration.sandbox.standby import Hello
from forge_orchestration.settings import Settings

_START_TIMEOUT_S = 30.0
_LIB = (Path(forge_checkpoint.__file__),)
"""What analyses may import."""


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


class SupervisedExecutor(AnalysisExecutor):
    """One spawner a process and kind of supervisor, shared by all instances of the same deployment."""

    contained = False
    """Whether its executions are containers of an engine."""
    _spawners: dict[Hello, _Spawner] = {}
    _spawners_lock = threading.Lock()

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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

    def poll(self, handle: ExecutionHandle) -> ExecutionState:
        return self.wait(handle, 0)

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

    def logs(self, handle: ExecutionHandle, stream: str, offset: int) -> bytes:
        folder = self._folder(handle)
        try:
            with open(folder.messages if stream == "messages" else folder.log(stream), "rb", buffering=0) as file:
                file.seek(offset)
                return file.read(LOG_READ_BYTES)
        except FileNotFoundError:
            return b""

    def collect(self, handle: ExecutionHandle) -> ExecutionRecord:
        record = self._folder(handle).read_record()
        if not record.status.is_final:
            raise ExecutorError(f"Execution {handle.execution_id} has not ended: it is {record.status}.")
        return record

    def reattach(self, native_id: str, execution_id: str) -> ExecutionHandle:
        return ExecutionHandle(execution_id=execution_id, native_id=native_id)

    def cleanup(self, handle: ExecutionHandle) -> Cleanup:
        folder = self._folder(handle)
        with folder.locked():
            return remove_leftovers(folder, self._settings)

    def recover(self, store: Store) -> threading.Thread | None:
        return recover_meanwhile(store, self._settings, self._spawner().site())

    def _folder(self, handle: ExecutionHandle) -> ExecutionFolder:
        return ExecutionFolder(self._settings.executions_dir, handle.execution_id)

    def _spawner(self) -> _Spawner:
        with self._spawners_lock:
            spawner = self._spawners.get(self._hello)
            if spawner is None or not spawner.is_alive:
                spawner = self._spawners[self._hello] = _Spawner(self._hello)
            return spawner

    def _common_plan(
        self, spec: AnalysisSpec, execution: PreparedExecution, site: CgroupSite, *, binds: list[Bind], bubblewrap: str = "",
        system: tuple[tuple[str, ...], dict[str, str]] = ((), {}), container: ContainerPlan | None = None,
    ) -> LaunchPlan:  # fmt: skip
        """The plan, with what every sandbox gets beside `binds`."""
        settings, runtime, folder = self._settings, execution.runtime, execution.folder
        binds += [bind(str(path), target) for target, path in runtime.mounts.items()]
        binds += [bind(str(path), f"{view.LIB}/{path.name}") for path in _LIB]
        if folder.analysis.is_dir():
            binds.append(bind(str(folder.analysis), view.ANALYSIS))
        binds += [
            Bind(source=item.path, target=f"{view.INPUTS}/{item.name}", device=item.device, inode=item.inode, owner=item.owner)
            for item in execution.inputs
        ]
        pipes = pipes_environment(
            spec.name.replace(".", "/"), spec.dagster_run_id or folder.id, spec.params, view.MESSAGES, spec.partition
        )
        return LaunchPlan(
            execution_id=folder.id, analysis=spec.name.replace(".", "/"), folder=str(folder.path), scratch_dir=str(settings.scratch_dir), bubblewrap=bubblewrap, command=spec.command,
            environment=view.environment(
                activation=runtime.activation, declared=pipes | spec.env, seed=spec.seed, threads=spec.threads, deadline=0.0,
                partition=spec.partition,
            ),
            limits=spec.limits, system_binds=system[0], system_links=system[1], binds=tuple(binds),
            outputs=spec.outputs, checks=spec.checks, parameters_json=msgspec.json.encode(spec.params).decode(), cgroup=site,
            identity=settings.identity, messages=settings.messages, output_caps=settings.outputs, supervision=settings.supervision, isolation=settings.isolation,
            neighbours=settings.neighbours, checkpoint=execution.checkpoint, container=container,
        )  # fmt: skip


def bind(source: str, target: str) -> Bind:
    """A file or folder of the host, as it is now."""
    facts = os.stat(source)
    closed = not facts.st_mode & 0o004
    return Bind(
        source=source,
        target=target,
        device=facts.st_dev,
        inode=facts.st_ino,
        owner=(facts.st_uid, facts.st_gid) if closed else None,
    )
