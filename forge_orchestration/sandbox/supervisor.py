"""The supervisor: one process an execution, which owns its pipes, its clock, its exit status and the facts of its record.

It is forked from the spawner, single-threaded, in a cgroup beside the execution's. Controllers come and go: they follow the
files in the execution's folder, and end the execution by sending SIGTERM to the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from forge_orchestration.errors import ForgeError, SandboxError, StuckError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.logs import CappedLog
from forge_orchestration.executions.messages import MessageParser, MessageViolation
from forge_orchestration.executions.outputs import Collected, collect_outputs
from forge_orchestration.model.messages import Message
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import (
    CheckFacts,
    CheckpointFacts,
    Cleanup,
    Enforced,
    ExecutionRecord,
    Isolation,
    Measured,
    Usage,
)  # fmt: skip
from forge_orchestration.sandbox import bubblewrap, linux, precedence
from forge_orchestration.sandbox.cgroups.base import Cgroup, Counters
from forge_orchestration.sandbox.checkpoints import Publisher, latest, made_by, restore
from forge_orchestration.sandbox.child import Child, start_child
from forge_orchestration.sandbox.entry import Entrant
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.input_mounts import mounted_inputs
from forge_orchestration.sandbox.orphans import end_own_helpers
from forge_orchestration.sandbox.plan import LaunchPlan
from forge_orchestration.sandbox.process_identity import ProcessIdentity
from forge_orchestration.sandbox.scratch import FolderWorkspace, Workspace
from forge_orchestration.sandbox.standby import Prepared, prepare
from forge_orchestration.sandbox.verdict import Observed, judge, wall_time_sentence
from forge_orchestration.sandbox.violations import Violations

_CHUNK = 1 << 16
_SET_UP_TIMEOUT_S = 60.0
_KILLED = float("inf")
T = TypeVar("T")
_TOLD_TOO_S = 0.2  # whoever ends all processes of a service tells this one too, before or after bubblewrap
PROTECTIONS = (
    "filesystem", "namespaces", "network", "identity", "no_new_privileges", "capabilities", "system_calls",
    "memory_limit", "cpu_limit", "pids_limit", "open_files_limit", "wall_time_limit", "log_limit", "keyring",
)  # fmt: skip


class Supervisor:
    """One execution from its plan to its final record."""

    def __init__(self, plan: LaunchPlan, controller: socket.socket, entrant: Entrant, ahead: Prepared | None = None) -> None:
        self._plan = plan
        self._entrant = entrant
        self._ahead = ahead
        self._controller: socket.socket | None = controller
        self._folder = ExecutionFolder(Path(plan.folder).parent, plan.execution_id)
        self._lock = self._folder.lock()  # until this process ends: nobody else closes the record meanwhile
        self._record: ExecutionRecord = self._folder.read_record()
        self._stops: dict[EndReason, str] = {}
        self._kill_at: float | None = None
        self._killed = 0
        self._violations: Violations | None = None
        self._announced = False
        self._verdict: dict[str, object] = {}
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

    def _announce(self) -> None:
        """Say who supervises, to all and to the controller."""
        me = ProcessIdentity(pid=os.getpid(), start_time=linux.start_time(os.getpid()) or 0, boot_id=linux.boot_id())
        self._record = msgspec.structs.replace(self._record, native_id=me.native_id, status=Status.PREPARING)
        self._folder.write_record(self._record)
        self._tell(me.native_id.encode())
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

    def _execute(self, identity: Identity, group: Cgroup, workspace: Workspace, scratch: dict[str, Enforced]) -> None:
        with mounted_inputs(self._plan, identity, workspace.folder) as self._plan:
            self._execute_plan(identity, group, workspace, scratch)

    def _execute_plan(self, identity: Identity, group: Cgroup, workspace: Workspace, scratch: dict[str, Enforced]) -> None:
        plan = self._plan
        self._publisher = self._begin_checkpoints(identity, workspace)
        logs = {name: CappedLog(self._folder.log(name), plan.limits.log_bytes) for name in ("stdout", "stderr")}
        place, messages = os.fspath(workspace.folder), os.fspath(workspace.messages)
        with start_child(
            plan, identity, group, self._entrant, place, messages, limit_file_size=isinstance(workspace, FolderWorkspace)
        ) as child:
            # while bubblewrap is at work
            if not self._announced:
                self._announce()
            group.create()
            standing = precedence.hold_back(plan)
            self._enforced = scratch | group.set_limits(plan.limits) | standing.enforced
            protections = dict.fromkeys(PROTECTIONS, "on") | {
                "scratch_limit": workspace.protection,
                "precedence": standing.protection,
            }
            for name, state in protections.items():
                if state.startswith("off") and name not in plan.isolation.may_be_off:
                    raise SandboxError(
                        f"The protection '{name}' is {state}.",
                        "Repair it, or allow it under [isolation] may_be_off in settings.toml.",
                    )
            self._isolation = Isolation(mode=identity.mode, uid=identity.host_uid, protections=protections)
            self._pump = _Pump(logs, MessageParser(plan.messages, plan.analysis, plan.checks), self._folder.messages)
            try:
                self._watch(child, identity, group, workspace)
            except (SandboxError, OSError) as error:
                raise child.given_up_or(error) from error
            ended = time.monotonic()
            full = self._scratch_full
            with contextlib.suppress(SandboxError):  # while something may still move in it: the look below is the one that counts
                full |= workspace.is_full()
            child.kill()  # its end takes a moment, in which ours goes on
            self._killed = self._at_last(group.end)
            full |= workspace.is_full(at_the_end=True)  # now that nothing moves any more
            counters = group.counters()
            self._at_last(child.end)
            self._drain(child)
        wall_s = ended - child.released_at if child.released_at else 0.0
        outputs = workspace.folder / "outputs"
        # an ordinary user's execution is the same user, and may have closed it; nothing of it runs any more
        os.chmod(outputs, 0o700)
        with os.scandir(outputs) as entries:
            if next(entries, None) is not None:  # else nobody could see it
                self._update(status=Status.COLLECTING)
        try:
            self._pump.finish()
        except MessageViolation as violation:
            if child.exit_status == 0:
                self._stops.setdefault(EndReason.OUTPUT_REJECTED, violation.message)
        collected = collect_outputs(outputs, self._folder.outputs, plan.outputs, plan.output_caps, plan.limits.scratch_bytes)
        self._verdict = self._facts(collected, counters, child, wall_s, full, workspace, logs)
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
        self, collected: Collected, counters: Counters, child: Child, wall_s: float, full: bool, workspace: Workspace,
        logs: dict[str, CappedLog],
    ) -> dict[str, object]:  # fmt: skip
        peak = workspace.peak
        reason, message = judge(
            Observed(
                limits=self._plan.limits, stops=self._stops, exit_status=child.exit_status, signal=child.signal, counters=counters, wall_s=wall_s,
                scratch_full=full, scratch_peak_bytes=int(peak.value),
                scratch_peak_files=workspace.peak_files, files_limit=int(self._enforced["files"].value), missing=tuple(collected.missing),
                unreported=tuple(self._pump.unreported),
                rejected=tuple(f"{item.path} ({item.why})" for item in collected.rejected),
            )
        )  # fmt: skip
        violations = self._violations
        usage = Usage(
            wall_s=Measured(value=round(wall_s, 6), source="supervisor's monotonic clock"),
            cpu_user_s=counters.cpu_user_s, cpu_system_s=counters.cpu_system_s,
            peak_memory_bytes=counters.peak_memory_bytes, peak_pids=counters.peak_pids,
            io_read_bytes=counters.io_read_bytes or child.io_read, io_write_bytes=counters.io_write_bytes or child.io_write,
            peak_scratch_bytes=peak,
        )  # fmt: skip
        return {
            "status": reason.status, "end_reason": reason, "message": message,
            "exit_code": child.exit_status if child.signal is None else None, "signal": child.signal, "usage": usage,
            "violations": violations.counts if violations else {},
            "suspect": violations is not None and violations.total >= self._plan.supervision.suspect_after,
             "outputs": collected.outputs, "rejected_outputs": collected.rejected,
            "metadata": self._pump.metadata, "checks": self._pump.checks, "logs": {name: log.facts() for name, log in logs.items()},
            "ended_at": time.time(),
        }  # fmt: skip

    # -- while it runs ---------------------------------------------------------------------------------------------

    def _watch(self, child: Child, identity: Identity, group: Cgroup, workspace: Workspace) -> None:
        """Until the command has ended, or the sandbox around it."""
        plan, poll = self._plan, select.poll()
        self._scratch_full = False
        out_of_memory = group.watch_out_of_memory()
        sources = {child.stdout: "stdout", child.stderr: "stderr", child.messages: "messages"}
        channel, standing = child.channel.fileno(), child.standing.fileno()
        for fd in (*sources, child.keeper, channel, self._wake_fd):
            poll.register(fd, select.POLLIN)
        poll.register(standing, 0)  # only its end is of interest, and that is always told
        if out_of_memory is not None:
            poll.register(out_of_memory, select.POLLIN)
        if self._controller is not None:
            poll.register(self._controller, select.POLLIN)
        next_look = refused_since = 0.0
        refused = 0
        listener = -1
        while child.exit_status is None and not (self._kill_at == _KILLED and not child.released_at):
            timeout_s = self._next_deadline(child, next_look) - time.monotonic()
            for fd, event in poll.poll(max(0.0, timeout_s * 1000)):
                if fd in sources:
                    if not self._read(sources[fd], fd) and event & select.POLLHUP:
                        poll.unregister(fd)
                elif fd == standing:
                    poll.unregister(fd)
                    child.enter()
                    bubblewrap.verify_tree(plan, child.inner_pid)  # while the command-to-be goes in
                elif fd == channel:
                    heard = child.hear()
                    if heard is not None:
                        self._violations, listener = Violations(heard), heard
                        poll.register(listener, select.POLLIN)
                        self._release(child, identity, group)
                elif fd == listener:
                    self._answer(poll)
                elif fd == child.keeper:
                    poll.unregister(fd)
                    error = child.reap_keeper()
                    if error and not select.select([self._wake_fd], [], [], _TOLD_TOO_S)[0]:
                        raise error
                elif fd == self._wake_fd:
                    os.read(self._wake_fd, 512)
                    self._stop(EndReason.CANCELED, "Canceled.", group, child)
                elif fd == out_of_memory:
                    if group.counters().oom_kills:
                        self._kill(group, child)
                elif self._controller is not None and fd == self._controller.fileno():
                    poll.unregister(fd)
                    self._controller_lost(group, child)
            now = time.monotonic()
            if not child.released_at and now >= child.started_at + _SET_UP_TIMEOUT_S:
                raise SandboxError(f"bubblewrap did not set up the sandbox within {_SET_UP_TIMEOUT_S:.0f} s.")
            if child.released_at and now >= child.released_at + plan.limits.wall_time_s:
                self._stop(EndReason.WALL_TIME, "", group, child)
            if self._kill_at is not None and now >= self._kill_at:
                self._kill(group, child)
            if now >= next_look:
                next_look = now + plan.supervision.poll_s
                if self._violations is not None and self._violations.is_flood:
                    self._answer(poll)
                counters = group.counters()
                if counters.oom_kills:
                    self._kill(group, child)  # what the event came too early for, or what no event tells: the host's want
                if self._publisher is not None and child.released_at:
                    with contextlib.suppress(OSError):  # no processes left, say; there is a next look
                        self._publisher.look()
                self._scratch_full |= workspace.is_full()
                if self._scratch_full and isinstance(workspace, FolderWorkspace):
                    self._kill(group, child)  # no kernel stands in its way: every moment of grace would fill the host's disk
                if counters.pids_refused > refused:
                    # still refused on every look for a while: not a program that copes with its limit, but a fork bomb
                    refused_since = refused_since or now
                    if now - refused_since > plan.supervision.fork_bomb_grace_s:
                        self._kill(group, child)
                else:
                    refused_since = 0.0
                refused = counters.pids_refused

    def _release(self, child: Child, identity: Identity, group: Cgroup) -> None:
        """The command-to-be waits: look at it, and let it go."""
        bubblewrap.verify_command(identity, child.main_pid, child.inner_pid, group.membership())
        self._enforced["open_files"] = bubblewrap.open_files_limit(child.main_pid, self._plan.limits.open_files)
        self._enforced |= precedence.read_back(child.main_pid, self._plan.neighbours)
        child.release()
        self._update(status=Status.RUNNING, started_at=time.time(), isolation=self._isolation, enforced=self._enforced)

    def _answer(self, poll: select.poll) -> None:
        violations = self._violations
        assert violations is not None
        more = violations.answer()
        if not more or violations.is_flood:
            with contextlib.suppress(KeyError):
                poll.unregister(violations.listener)

    def _next_deadline(self, child: Child, next_look: float) -> float:
        deadlines = [next_look]
        if self._kill_at is not None:
            deadlines.append(self._kill_at)
        elif child.released_at:
            deadlines.append(child.released_at + self._plan.limits.wall_time_s)
        return min(deadlines)

    def _stop(self, reason: EndReason, message: str, group: Cgroup, child: Child) -> None:
        """SIGTERM to the analysis' own processes, and SIGKILL to everything when the grace is over."""
        if reason in self._stops or self._kill_at is not None:
            return
        if reason is EndReason.WALL_TIME:
            message = wall_time_sentence(self._plan.limits, time.monotonic() - child.released_at)
        self._stops[reason] = message
        if child.released_at:
            self._kill_at = time.monotonic() + self._plan.limits.grace_s
            group.signal_members(signal.SIGTERM)
        else:
            self._kill_at = time.monotonic()

    def _kill(self, group: Cgroup, child: Child) -> None:
        self._kill_at = _KILLED
        group.kill()
        self._at_last(child.end)

    def _controller_lost(self, group: Cgroup, child: Child) -> None:
        assert self._controller is not None
        self._controller.close()
        self._controller = None
        if self._plan.supervision.on_controller_loss == "kill":
            self._stop(EndReason.CONTROLLER_LOST, "The process that started the analysis ended before it.", group, child)

    def _read(self, source: str, fd: int) -> bool:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        try:
            self._pump.take(source, data)
        except MessageViolation as violation:
            self._stops.setdefault(EndReason.OUTPUT_REJECTED, violation.message)
            self._kill_at = time.monotonic()
        return bool(data)

    def _drain(self, child: Child) -> None:
        """What is still in the pipes, whose other ends are all closed."""
        for fd, source in ((child.stdout, "stdout"), (child.stderr, "stderr"), (child.messages, "messages")):
            while self._read(source, fd):
                pass

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


class _Pump:
    """Takes what the sandbox says to where it is kept."""

    def __init__(self, logs: dict[str, CappedLog], parser: MessageParser, messages: Path) -> None:
        self._logs = logs
        self._parser = parser
        self._messages_path = messages
        self._file: int | None = None
        self._broken = False
        self.metadata: dict[str, object] = {}
        self.checks: list[CheckFacts] = []

    @property
    def unreported(self) -> list[str]:
        """Declared checks of which the analysis said nothing."""
        return self._parser.unreported

    def take(self, source: str, data: bytes) -> None:
        """Bytes of `stdout`, `stderr` or `messages`.

        Raises:
            MessageViolation: At the first message that breaks the rules; later ones are dropped.
        """
        if source != "messages":
            self._logs[source].write(data)
        elif not self._broken:
            try:
                messages = self._parser.feed(data)
            except MessageViolation:
                self._broken = True
                raise
            for message in messages:
                if message.type == "check":
                    self.checks.append(_check_facts(message))
                else:
                    self.metadata.update(message.values if len(self.metadata) < 1000 else {})
                self._append(msgspec.json.encode(message) + b"\n")

    def finish(self) -> None:
        """Nothing more comes.

        Raises:
            MessageViolation: The channel ended badly.
        """
        if self._file is not None:
            os.close(self._file)
        for log in self._logs.values():
            log.close()
        if not self._broken:
            self._parser.finish()

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._file = os.open(self._messages_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(self._file, line)


def _check_facts(message: Message) -> CheckFacts:
    return CheckFacts(
        name=message.name, passed=bool(message.passed), severity="warning" if message.level == "warning" else "error",
        message=message.message, values=dict(message.values),
    )  # fmt: skip
