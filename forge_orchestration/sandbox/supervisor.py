"""The supervisor: one process an execution, which owns its pipes, its clock, its exit status and the facts of its record.

It is forked from the spawner, single-threaded, in a cgroup beside the execution's. Controllers come and go: they follow the
files in the execution's folder, and end the execution by sending SIGTERM to the supervisor. How the command is started and what
is heard of it is the matter of who derives from this: `sandboxed` has bubblewrap make a sandbox, `contained` an engine a container.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from forge_orchestration.errors import ForgeError, SandboxError, StuckError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.logs import CappedLog
from forge_orchestration.executions.messages import MessageParser, MessageViolation
from forge_orchestration.executions.outputs import Collected, collect_outputs
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import CheckpointFacts, Cleanup, Enforced, ExecutionRecord, Isolation, Measured, Usage
from forge_orchestration.sandbox import linux, precedence
from forge_orchestration.sandbox.cgroups.base import Cgroup, Counters
from forge_orchestration.sandbox.checkpoints import Publisher, latest, made_by, restore
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.orphans import end_own_helpers
from forge_orchestration.sandbox.plan import LaunchPlan
from forge_orchestration.sandbox.process_identity import ProcessIdentity
from forge_orchestration.sandbox.pump import Pump
from forge_orchestration.sandbox.scratch import FolderWorkspace, Workspace
from forge_orchestration.sandbox.standby import Prepared, prepare
from forge_orchestration.sandbox.verdict import Observed, judge, socket_memory_sentence, wall_time_sentence

_CHUNK = 1 << 16
_SET_UP_TIMEOUT_S = 60.0
_TOLD_TOO_S = 0.2
KILLED = float("inf")
T = TypeVar("T")


class Command(Protocol):
    """What a supervisor holds of the command and of what it runs in.

    Attributes:
        started_at: When what it runs in was begun; released_at: when the command was let go, 0 before. On the monotonic clock.
        exit_status: Of the command, as a shell would report it (128 + number for a signal); None before its end.
        signal: That ended it.
    """

    started_at: float
    released_at: float
    exit_status: int | None
    signal: int | None

    @property
    def io_read(self) -> Measured | None:
        """Bytes that it has read from disks, where its group does not count them."""

    @property
    def io_write(self) -> Measured | None:
        """Bytes that it has written to disks."""

    def kill(self) -> None:
        """Begin to end it and what it runs in."""

    def end(self) -> None:
        """The same, and wait until it is done."""


class Supervisor(ABC):
    """One execution from its plan to its final record."""

    def __init__(self, plan: LaunchPlan, controller: socket.socket, ahead: Prepared | None = None) -> None:
        self._plan = plan
        self._ahead = ahead
        self._controller: socket.socket | None = controller
        self._folder = ExecutionFolder(Path(plan.folder).parent, plan.execution_id)
        self._lock = self._folder.lock()  # until this process ends: nobody else closes the record meanwhile
        try:
            self._record: ExecutionRecord = self._folder.read_record()
        except BaseException:
            if self._lock is not None:
                os.close(self._lock)
            raise
        self._stops: dict[EndReason, str] = {}
        self._kill_at: float | None = None
        self._killed = 0
        self._announced = False
        self._verdict: dict[str, object] = {}
        self._scratch_full = False
        self._publisher: Publisher | None = None
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._wake_fd, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)

    def run(self) -> None:
        """Run the execution. If started by root, this process has a mount namespace of its own.

        Whatever happens, the record ends in a final state and nothing of the execution is left running.
        """
        if self._record.status.is_final:  # it was given up as lost before this process came to it
            if self._ahead is not None:
                self._ahead.release(ended=True)
            return
        try:
            self._run()
        except Exception as error:
            with contextlib.suppress(OSError):
                (self._folder.path / "supervisor.log").write_text(traceback.format_exc())
            with contextlib.suppress(OSError):
                self._close_after_error(error)
        self._tell(b"done")

    # -- what is the matter of who derives from this -----------------------------------------------------------------

    @abstractmethod
    def _execute(self, identity: Identity, group: Cgroup, workspace: Workspace, scratch: dict[str, Enforced]) -> None:
        """Run the command to its end, and leave in `_verdict` what is to be recorded of it.

        Args:
            scratch: The workspace's limits, as read back.
        """

    def _look(self, command: Command, group: Cgroup) -> None:  # noqa: B027
        """What else is to be looked at from time to time."""

    def _violations(self) -> dict[str, object]:
        """The record's fields of what the sandbox refused."""
        return {}

    @property
    def native_id(self) -> str:
        """Who this is, as the record has it."""
        me = ProcessIdentity(pid=os.getpid(), start_time=linux.start_time(os.getpid()) or 0, boot_id=linux.boot_id())
        return me.native_id

    @property
    def host(self) -> str:
        """The name of the host that this runs on."""
        return os.uname().nodename

    # -- from the plan to the end --------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Say who supervises, to all and, once, to the controller."""
        if self._announced:
            return
        native_id = self.native_id
        self._record = msgspec.structs.replace(
            self._record, native_id=native_id, host=self.host, status=Status.PREPARING, message=""
        )
        self._folder.write_record(self._record)
        self._tell(native_id.encode())
        self._announced = True

    def _run(self) -> None:
        plan = self._plan
        group = plan.cgroup.group(plan.execution_id)
        prepared = prepare(plan, self._ahead)
        ended = False
        try:
            try:
                self._execute(prepared.claim.identity, group, prepared.workspace, prepared.enforced)
            finally:
                if self._record.started_at is None:  # bubblewrap may have been ended while it set up (see `orphans`)
                    end_own_helpers(plan.cgroup)
                killed = self._killed + self._at_last(group.end)
                ended = True
        finally:
            freed, mounts = prepared.release(ended=ended)
            if not self._verdict:  # we failed, and what is still to be said may need the room
                prepared.workspace.close()
            removed = group.remove()
        cleanup = Cleanup(
            scratch_bytes_freed=freed,
            processes_killed=killed,
            cgroup_removed=removed,
            mounts_removed=mounts,
            finished_at=time.time(),
        )
        self._update(cleanup=cleanup, **self._verdict)

    def _limit(
        self, identity: Identity, group: Cgroup, workspace: Workspace, scratch: dict[str, Enforced], protections: dict[str, str]
    ) -> None:
        """Make the group, with its limits, and see that what protects the host is there; be ready for what the command says.

        Args:
            protections: Those of what the command is to run in.

        Raises:
            SandboxError: A protection that the deployment demands is off.
        """
        plan = self._plan
        group.create()
        standing = precedence.hold_back(plan)
        self._enforced = scratch | group.set_limits(plan.limits) | standing.enforced
        protections = protections | {"scratch_limit": workspace.protection, "precedence": standing.protection}
        for name, state in protections.items():
            if state.startswith("off") and name not in plan.isolation.may_be_off:
                raise SandboxError(
                    f"The protection '{name}' is {state}.",
                    "Repair it, or allow it under [isolation] may_be_off in settings.toml.",
                )
        self._isolation = Isolation(mode=identity.mode, uid=identity.host_uid, protections=protections)
        self._logs = {name: CappedLog(self._folder.log(name), plan.limits.log_bytes) for name in ("stdout", "stderr")}
        self._pump = Pump(self._logs, MessageParser(plan.messages, plan.analysis, plan.checks), self._folder.messages)

    def _started(self) -> None:
        """The command has been let go."""
        self._update(status=Status.RUNNING, started_at=time.time(), isolation=self._isolation, enforced=self._enforced)

    def _end(self, command: Command, group: Cgroup, workspace: Workspace, drain: Callable[[], None]) -> None:
        """End all that is left of it, and judge.

        Args:
            drain: Take what it has said and nobody has heard yet.
        """
        plan, ended = self._plan, time.monotonic()
        full = self._scratch_full
        with contextlib.suppress(SandboxError):  # while something may still move in it: the look below is the one that counts
            full |= workspace.is_full()
        command.kill()  # its end takes a moment, in which ours goes on
        self._killed = self._at_last(group.end)
        full |= workspace.is_full(at_the_end=True)  # now that nothing moves any more
        counters = group.counters()
        self._at_last(command.end)
        drain()
        wall_s = ended - command.released_at if command.released_at else 0.0
        outputs = workspace.folder / "outputs"
        # an ordinary user's execution is the same user, and may have closed it; nothing of it runs any more
        os.chmod(outputs, 0o700)
        with os.scandir(outputs) as entries:
            if next(entries, None) is not None:  # else nobody could see it
                self._update(status=Status.COLLECTING)
        try:
            self._pump.finish()
        except MessageViolation as violation:
            if command.exit_status == 0:
                self._stops.setdefault(EndReason.OUTPUT_REJECTED, violation.message)
        collected = collect_outputs(outputs, self._folder.outputs, plan.outputs, plan.output_caps, plan.limits.scratch_bytes)
        self._verdict = self._facts(collected, counters, command, wall_s, full, workspace)
        self._end_checkpoints(workspace)

    def _begin_checkpoints(self, identity: Identity, workspace: Workspace) -> Publisher | None:
        """Give it what an earlier execution has left, and make ready for what this one does."""
        plan, folder = self._plan, workspace.folder / "checkpoint"
        if plan.checkpoint is None:
            return None
        facts = self._record.checkpoint or CheckpointFacts()
        if plan.checkpoint.start:
            self._announce()  # to copy a large one takes longer than a controller waits for a word
            name, size = restore(plan.checkpoint, folder, identity)
            facts = msgspec.structs.replace(facts, resumed_from=made_by(name) or None, resumed_bytes=size)
        self._record = msgspec.structs.replace(self._record, checkpoint=facts)
        return Publisher(plan.checkpoint, plan.execution_id, folder, plan.output_caps, plan.limits.scratch_bytes)

    def _end_checkpoints(self, workspace: Workspace) -> None:
        """Keep what is there for the next, unless nothing is left to do."""
        if self._publisher is None or self._plan.checkpoint is None:
            return
        if self._verdict["status"] is Status.SUCCEEDED:
            self._publisher.drop()
            return
        why = self._record.checkpoint.why if self._record.checkpoint else ""
        try:
            os.chmod(workspace.folder / "checkpoint", 0o700)
            why = f"{why} {self._publisher.finish()}".strip()
        except OSError as error:
            why = f"{why} Its last checkpoint could not be kept: {error.strerror}.".strip()
        kept = made_by(latest(Path(self._plan.checkpoint.folder))) == self._plan.execution_id
        facts = self._record.checkpoint or CheckpointFacts()
        self._verdict["checkpoint"] = msgspec.structs.replace(facts, kept=kept, why=why)

    def _facts(
        self, collected: Collected, counters: Counters, command: Command, wall_s: float, full: bool, workspace: Workspace
    ) -> dict[str, object]:
        peak = workspace.peak
        reason, message = judge(
            Observed(
                limits=self._plan.limits, stops=self._stops, exit_status=command.exit_status, signal=command.signal, counters=counters, wall_s=wall_s,
                scratch_full=full, scratch_peak_bytes=int(peak.value),
                scratch_peak_files=workspace.peak_files, files_limit=int(self._enforced["files"].value), missing=tuple(collected.missing),
                unreported=tuple(self._pump.unreported),
                rejected=tuple(f"{item.path} ({item.why})" for item in collected.rejected),
            )
        )  # fmt: skip
        usage = Usage(
            wall_s=Measured(value=round(wall_s, 6), source="supervisor's monotonic clock"),
            cpu_user_s=counters.cpu_user_s, cpu_system_s=counters.cpu_system_s,
            peak_memory_bytes=counters.peak_memory_bytes, peak_pids=counters.peak_pids,
            io_read_bytes=counters.io_read_bytes or command.io_read, io_write_bytes=counters.io_write_bytes or command.io_write,
            peak_scratch_bytes=peak,
        )  # fmt: skip
        return {
            "status": reason.status, "end_reason": reason, "message": message,
            "exit_code": command.exit_status if command.signal is None else None, "signal": command.signal, "usage": usage,
            "outputs": collected.outputs, "rejected_outputs": collected.rejected,
            "metadata": self._pump.metadata, "checks": self._pump.checks, "logs": {name: log.facts() for name, log in self._logs.items()},
            "ended_at": time.time(), **self._violations(),
        }  # fmt: skip

    # -- while it runs -------------------------------------------------------------------------------------------------

    def _listen(self, fd: int, handler: Callable[[int], None], events: int = select.POLLIN) -> None:
        """Have `handler` called with the event whenever there is something to read, or the other end hangs up."""
        self._poll.register(fd, events)
        self._handlers[fd] = handler

    def _ignore(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _listen_to(self, sources: dict[int, str]) -> None:
        """Take what comes from these descriptors, `stdout`, `stderr` and `messages`."""

        def listener(fd: int, source: str) -> Callable[[int], None]:
            def read(event: int) -> None:
                if not self._read(source, fd) and event & select.POLLHUP:
                    self._ignore(fd)

            return read

        for fd, source in sources.items():
            self._listen(fd, listener(fd, source))

    def _watch(self, command: Command, group: Cgroup, workspace: Workspace) -> None:
        """Until the command has ended, or what is around it."""
        plan = self._plan
        out_of_memory = group.watch_out_of_memory()
        self._listen(self._wake_fd, lambda _: self._canceled(command, group))
        if out_of_memory is not None:
            self._listen(out_of_memory, lambda _: self._kill(command, group) if group.refusals().oom_kills else None)
        if self._controller is not None:
            self._listen(self._controller.fileno(), lambda _: self._controller_lost(command, group))
        next_look = refused_since = 0.0
        refused = 0
        while command.exit_status is None and not (self._kill_at == KILLED and not command.released_at):
            timeout_s = self._next_deadline(command, next_look) - time.monotonic()
            for fd, event in self._poll.poll(max(0.0, timeout_s * 1000)):
                if fd in self._handlers:
                    self._handlers[fd](event)
            now = time.monotonic()
            if not command.released_at and now >= command.started_at + _SET_UP_TIMEOUT_S:
                raise SandboxError(f"The sandbox was not set up within {_SET_UP_TIMEOUT_S:.0f} s.")
            if command.released_at and now >= command.released_at + plan.limits.wall_time_s:
                self._stop(EndReason.WALL_TIME, "", command, group)
            if self._kill_at is not None and now >= self._kill_at:
                self._kill(command, group)
            if now >= next_look:
                next_look = now + plan.supervision.poll_s
                self._look(command, group)
                refusals = group.refusals()
                if refusals.oom_kills:
                    self._kill(command, group)  # what the event came too early for, or what no event tells: the host's want
                if self._publisher is not None and command.released_at:
                    with contextlib.suppress(OSError):  # no processes left, say; there is a next look
                        self._publisher.look()
                self._scratch_full |= workspace.is_full()
                if self._scratch_full and isinstance(workspace, FolderWorkspace):
                    self._kill(command, group)  # no kernel stands in its way: every moment of grace would fill the host's disk
                if refusals.socket_bytes_over:
                    self._stops.setdefault(EndReason.MEMORY, socket_memory_sentence(plan.limits))
                    self._kill(command, group)
                if refusals.pids_refused > refused:
                    # still refused on every look for a while: not a program that copes with its limit, but a fork bomb
                    refused_since = refused_since or now
                    if now - refused_since > plan.supervision.fork_bomb_grace_s:
                        self._kill(command, group)
                else:
                    refused_since = 0.0
                refused = refusals.pids_refused
        # whoever ends all processes of a service or of a job may reach the analysis before this one
        told = command.signal == signal.SIGTERM and not self._stops and select.select([self._wake_fd], [], [], _TOLD_TOO_S)[0]
        if told:
            self._canceled(command, group)

    def _next_deadline(self, command: Command, next_look: float) -> float:
        deadlines = [next_look]
        if self._kill_at is not None:
            deadlines.append(self._kill_at)
        elif command.released_at:
            deadlines.append(command.released_at + self._plan.limits.wall_time_s)
        return min(deadlines)

    def _canceled(self, command: Command, group: Cgroup) -> None:
        os.read(self._wake_fd, 512)
        self._stop(EndReason.CANCELED, "Canceled.", command, group)

    def _stop(self, reason: EndReason, message: str, command: Command, group: Cgroup) -> None:
        """SIGTERM to the analysis' own processes, and SIGKILL to everything when the grace is over."""
        if reason in self._stops or self._kill_at is not None:
            return
        if reason is EndReason.WALL_TIME:
            message = wall_time_sentence(self._plan.limits, time.monotonic() - command.released_at)
        self._stops[reason] = message
        if command.released_at:
            self._kill_at = time.monotonic() + self._plan.limits.grace_s
            self._ask_to_end(command, group)
        else:
            self._kill_at = time.monotonic()

    def _ask_to_end(self, command: Command, group: Cgroup) -> None:
        group.signal_members(signal.SIGTERM)

    def _kill(self, command: Command, group: Cgroup) -> None:
        self._kill_at = KILLED
        group.kill()
        self._at_last(command.end)

    def _controller_lost(self, command: Command, group: Cgroup) -> None:
        assert self._controller is not None
        self._ignore(self._controller.fileno())
        self._controller.close()
        self._controller = None
        if self._plan.supervision.on_controller_loss == "kill":
            self._stop(EndReason.CONTROLLER_LOST, "The process that started the analysis ended before it.", command, group)

    def _read(self, source: str, fd: int) -> bool:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        self._take(source, data)
        return bool(data)

    def _take(self, source: str, data: bytes) -> None:
        try:
            self._pump.take(source, data)
        except MessageViolation as violation:
            self._stops.setdefault(EndReason.OUTPUT_REJECTED, violation.message)
            self._kill_at = time.monotonic()

    def _at_last(self, end: Callable[[], T]) -> T:
        """What `end` returns, however long it takes: what hangs in the kernel keeps its uid, its group and this process."""
        while True:
            try:
                return end()
            except StuckError as error:
                if not self._record.message:
                    self._update(status=Status.COLLECTING, message=f"{error.message} The execution ends when the kernel lets go.")

    # -- the record ------------------------------------------------------------------------------------------------

    def _update(self, **changes: object) -> None:
        self._record = msgspec.structs.replace(self._record, **changes)
        self._folder.write_record(self._record)

    def _close_after_error(self, error: Exception) -> None:
        """We failed, not the analysis: refused if nothing of it had run, an executor's error otherwise."""
        if not self._announced:
            self._announce()
        ran = self._record.started_at is not None
        reason = EndReason.SANDBOX_UNAVAILABLE if isinstance(error, SandboxError) and not ran else EndReason.EXECUTOR_ERROR
        text = str(error) if isinstance(error, ForgeError) else f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and not ran:
            reason = EndReason.SANDBOX_UNAVAILABLE
        self._update(status=reason.status, end_reason=reason, message=f"The sandbox failed: {text}", ended_at=time.time())

    def _tell(self, word: bytes) -> None:
        if self._controller is not None:
            with contextlib.suppress(OSError):
                self._controller.send(word, socket.MSG_NOSIGNAL)
