"""The `slurm` executor: a job an execution, and on its node the sandbox and the supervisor that the local executor would make."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from forge_orchestration.errors import BackendUnavailableError, ExecutorError, HostError, SubmitError
from forge_orchestration.executions.folder import ExecutionFolder, write_atomically
from forge_orchestration.executions.store import Store
from forge_orchestration.executors import node
from forge_orchestration.executors import slurm_commands as commands
from forge_orchestration.executors.base import ExecutionHandle, ExecutionState, ExecutorCapabilities, PreparedExecution
from forge_orchestration.executors.local import LocalExecutor
from forge_orchestration.executors.planned import PlannedExecutor
from forge_orchestration.executors.recovery import recover_meanwhile
from forge_orchestration.executors.slurm_commands import JobState
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import Cleanup, ExecutionRecord
from forge_orchestration.model.sections import SlurmSettings
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.leftovers import close_in_its_place
from forge_orchestration.settings import Settings

_COMMAND_TIMEOUT_S = 60.0
_TRIES = 5
_LOOK_S = 0.1
_BELIEVED_S = 30.0
_QUESTION_TIMEOUT_S = 10.0
_CANCEL_AGAIN_S = 5.0
_FORGOTTEN_S = 300.0
_TOLD_APART_S = 30.0
_JOB, _ASKED = "job.json", "job.asked"


@compiled
class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`job.json` in the execution's folder: which job it is."""

    job: str
    submitted_at: float


class SlurmExecutor(PlannedExecutor):
    """A job an execution. `FORGE_HOME`, inputs and runtimes lie where all nodes see them at the same path, as sites have it.

    Of a job that runs its own supervisor on the node writes the record, in the execution's folder; of one that ends without a word
    Slurm is asked. Both follow the same files, so whoever waits may come and go.
    """

    name = "slurm"
    capabilities = ExecutorCapabilities(
        limits=LocalExecutor.capabilities.limits,
        runtime_kinds=LocalExecutor.capabilities.runtime_kinds,
        reattach=True,
        where="in sandboxes of bubblewrap on the nodes of a Slurm cluster, a job each",
        enforced_by="cgroups of the node, a file system of a fixed size for each execution, and its supervisor's clock; Slurm's own limits are wider",
        cannot=(
            "no network",
            "no images",
            "an execution goes on when the process that started it is gone, whatever on_controller_loss says",
            "no MPI: a job is one task on one node",
        ),
    )
    _clusters: dict[SlurmSettings, _Cluster] = {}
    _clusters_lock = threading.Lock()

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        with self._clusters_lock:  # one a process, whatever the number of executions and engines
            if settings.slurm not in self._clusters:
                self._clusters[settings.slurm] = _Cluster(settings.slurm)
            self._cluster = self._clusters[settings.slurm]
        # since when, of an execution: its job is seen to have ended, or to wait for ever; it was last asked to end
        self._ended: dict[str, float] = {}
        self._stuck: dict[str, float] = {}
        self._canceled: dict[str, float] = {}

    def check(self) -> None:
        self._cluster.check()

    def recover(self, store: Store) -> threading.Thread | None:
        return recover_meanwhile(store, self._settings, None)

    def submit(self, spec: AnalysisSpec, execution: PreparedExecution) -> ExecutionHandle:
        folder = execution.folder
        with folder.locked():  # the supervisor on the node waits for it
            if (there := _read(folder)) is not None or (there := self._found(folder)) is not None:
                return self._handle(folder, there)
            site = CgroupSite(
                version=2, mounts={"unified": node.NOWHERE}, parent=self._settings.cgroup.parent
            )  # the node's own is put in
            write_atomically(folder.path / "plan.json", msgspec.json.encode(self._common_plan(spec, execution, site, binds=[])))
            write_atomically(folder.path / _ASKED, b"")
            command = commands.submit(folder.id, spec.limits, self._settings.slurm, str(folder.path))
            settings = self._settings
            places = (folder.path, settings.cgroup.parent, settings.slurm.scratch_dir or settings.scratch_dir, settings.cache_dir)
            script = commands.script(node.entry_point(settings.slurm.python), map(str, places))
            try:
                answer = self._cluster.run(command, script, again=lambda: self._found(folder) is None)
            except _AlreadyThere:
                there = _read(folder)
                assert there is not None
                return self._handle(folder, there)
            except ExecutorError as error:
                raise SubmitError(error.message, error.hint) from error
            job = commands.submitted(answer)
            if job is None:
                raise SubmitError(f"Slurm said '{answer[:200]}' where it should have said the job's number.")
            return self._handle(folder, _keep(folder, job))

    def _found(self, folder: ExecutionFolder) -> Job | None:
        """The job of an execution whose number was not heard: its controller was killed at that moment, or no answer came."""
        if not (folder.path / _ASKED).exists():
            return None
        found = (
            self._cluster.run(commands.named(folder.id)).split() or self._cluster.run(commands.accounted_name(folder.id)).split()
        )
        return _keep(folder, found[0]) if found else None

    def _handle(self, folder: ExecutionFolder, job: Job) -> ExecutionHandle:
        record = folder.read_record()
        native_id = commands.native_id(job.job)
        if record.native_id is None and not record.status.is_final:
            folder.write_record(msgspec.structs.replace(record, native_id=native_id))
        return ExecutionHandle(execution_id=folder.id, native_id=native_id)

    def wait(self, handle: ExecutionHandle, timeout_s: float | None = None) -> ExecutionState:
        folder = self._folder(handle)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        job = _read(folder)
        while True:
            record = folder.read_record()
            if record.status.is_final:
                return ExecutionState(status=self._told_apart(folder, record, job).status)
            if job is None and (job := self._found(folder)) is None:
                return self._closed(folder, EndReason.EXECUTOR_ERROR, "It was never submitted. Run it again.")
            state = self._cluster.state(job.job, at_once=timeout_s == 0)
            if state is not None and (ended := self._verdict(folder, job, state)) is not None:
                if (closed := self._closed(folder, *ended)).is_final:
                    return closed
            elif state is not None and state.waits:
                self._say_why(folder, record, state)
            if (folder.path / node.CANCELED).exists() and time.monotonic() > self._canceled.get(folder.id, 0.0) + _CANCEL_AGAIN_S:
                self._cancel(folder, job)
            if deadline is not None and time.monotonic() >= deadline:
                return ExecutionState(status=record.status)
            time.sleep(_LOOK_S if deadline is None else max(0.0, min(_LOOK_S, deadline - time.monotonic())))

    def _verdict(self, folder: ExecutionFolder, job: Job, state: JobState) -> tuple[EndReason, str] | None:
        """What Slurm's word means; None if the supervisor's is to be waited for."""
        if state.has_ended and self._for_long(self._ended, folder.id, self._settings.slurm.record_s, state.ended_at):
            if (folder.path / node.CANCELED).exists():
                return EndReason.CANCELED, "Canceled."
            return commands.verdict(state, job.job)
        if state.never_begins and self._for_long(self._stuck, folder.id, 2 * self._settings.slurm.poll_s):
            with contextlib.suppress(ExecutorError):  # it is gone already
                self._cluster.run(commands.remove(job.job), tries=2, first=True)
            return EndReason.EXECUTOR_ERROR, state.never_begins
        if not state.never_begins:
            self._stuck.pop(folder.id, None)
        return None

    @staticmethod
    def _for_long(since: dict[str, float], execution_id: str, patience_s: float, at: float | None = None) -> bool:
        """Whether something was seen for the first time a while ago, or happened `at` a time that long ago."""
        seen_s = time.monotonic() - since.setdefault(execution_id, time.monotonic())
        return seen_s > patience_s or (at is not None and time.time() - at > patience_s)

    def _say_why(self, folder: ExecutionFolder, record: ExecutionRecord, state: JobState) -> None:
        said = f"Waiting for Slurm: {state.reason or state.state}."
        if record.status is Status.QUEUED and record.message != said:
            with folder.locked(wait=False) as ours:
                if ours and (now := folder.read_record()).status is Status.QUEUED:
                    folder.write_record(msgspec.structs.replace(now, message=said))

    def _told_apart(self, folder: ExecutionFolder, record: ExecutionRecord, job: Job | None) -> ExecutionRecord:
        """Of one that was asked to end, and not by us: whether it had to make room."""
        if record.end_reason is not EndReason.CANCELED or job is None or (folder.path / node.CANCELED).exists():
            return record
        deadline = time.monotonic() + _TOLD_APART_S
        while (state := self._cluster.state(job.job)) is None or not state.has_ended:  # its node is still at work
            if time.monotonic() > deadline:
                return record
            time.sleep(_LOOK_S)
        if state.state == "PREEMPTED":
            reason, said = commands.verdict(state, job.job)
            with folder.locked():
                record = msgspec.structs.replace(record, status=reason.status, end_reason=reason, message=said)
                folder.write_record(record)
        return record

    def _closed(self, folder: ExecutionFolder, reason: EndReason, said: str) -> ExecutionState:
        with folder.locked(wait=False) as ours:
            if not ours:  # its supervisor lives, whatever Slurm believes of the node
                return ExecutionState(status=folder.read_record().status)
            return ExecutionState(status=close_in_its_place(folder, self._settings, reason, said).status)

    def cancel(self, handle: ExecutionHandle) -> None:
        folder = self._folder(handle)
        if folder.read_record().status.is_final:
            return
        write_atomically(folder.path / node.CANCELED, b"")  # its supervisor looks for it, and whoever waits asks again
        if (job := _read(folder)) is not None:
            self._cancel(folder, job)

    def _cancel(self, folder: ExecutionFolder, job: Job) -> None:
        self._canceled[folder.id] = time.monotonic()
        for command in (commands.cancel(job.job), commands.ask_to_end(job.job)):
            with contextlib.suppress(ExecutorError):  # it has ended meanwhile, or Slurm does not answer
                self._cluster.run(command, tries=1, first=True)

    def cleanup(self, handle: ExecutionHandle) -> Cleanup:
        folder = self._folder(handle)
        if (folder.path / _ASKED).exists() and (_read(folder) is None or not folder.read_record().status.is_final):
            with contextlib.suppress(ExecutorError):
                self._cluster.run(commands.remove_named(folder.id), tries=2, first=True)
        return Cleanup(finished_at=time.time())


class _AlreadyThere(Exception):
    """A command whose answer was lost has done its work."""


class _Cluster:
    """What one process knows of a cluster, and the one place where Slurm's commands are run.

    Never more of them a minute than the settings allow; and whoever waits for a job is told by the same question.
    """

    def __init__(self, settings: SlurmSettings) -> None:
        self._settings = settings
        self._pause_s = 60.0 / settings.commands_per_minute
        self._next = 0.0
        self._turn, self._asking, self._checking = threading.Lock(), threading.Lock(), threading.Lock()
        self._wanted: dict[str, float] = {}
        self._states: dict[str, JobState] = {}
        self._unknown: dict[str, float] = {}
        self._asked_at = self._checked_at = -3600.0

    def check(self) -> None:
        """Whether it answers, by a look that is at most half a minute old.

        Raises:
            HostError, BackendUnavailableError: It does not.
        """
        with self._checking:
            if time.monotonic() - self._checked_at > _BELIEVED_S:
                self.run(["scontrol", "ping"], tries=2, first=True)
                self._checked_at = time.monotonic()

    def run(
        self,
        command: list[str],
        script: str | None = None,
        *,
        tries: int = _TRIES,
        again: Callable[[], bool] = lambda: True,
        first: bool = False,
        timeout_s: float = _COMMAND_TIMEOUT_S,
    ) -> str:
        """What a command prints, tried again while Slurm does not answer.

        Args:
            script: Its standard input.
            again: Whether it is still to be done, asked before another try.
            first: Whether it goes before all that wait for their turn.

        Raises:
            HostError: Slurm's commands are not installed.
            BackendUnavailableError: Slurm does not answer.
            ExecutorError: It refuses.
        """
        environment = {name: os.environ[name] for name in commands.PASSED_ON if name in os.environ}
        wait_s, said = 0.5, ""
        for number in range(1, tries + 1):
            self._wait_for_turn(first)
            try:
                done = subprocess.run(
                    command, input=script, env=environment, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
                )  # fmt: skip
            except FileNotFoundError as error:
                raise HostError(
                    f"{command[0]} is not installed.", "Install Slurm's commands: sudo apt-get install slurm-client"
                ) from error
            except subprocess.TimeoutExpired:
                said = f"it did not end within {timeout_s:g} s"
            else:
                if done.returncode == 0:
                    return done.stdout
                said = " ".join((done.stderr or done.stdout).split())[:400].rstrip(".")
                if commands.is_permanent(said):
                    raise ExecutorError(f"Slurm refuses: {said}.", commands.remedy(said))
            if number < tries:
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, 10.0)
                if not again():
                    raise _AlreadyThere
        raise BackendUnavailableError(f"Slurm does not answer: {command[0]}: {said}.", "See: sinfo; scontrol ping")

    def _wait_for_turn(self, first: bool) -> None:
        with self._turn:
            now = time.monotonic()
            at = now if first else max(now, self._next)
            self._next = max(now, self._next) + self._pause_s  # the others make up for who goes first
        time.sleep(at - now)

    def state(self, job: str, *, at_once: bool = False) -> JobState | None:
        """As Slurm said last; None if it has not been asked yet. It is asked of this one too from now on.

        Args:
            at_once: Ask now if nothing is known.
        """
        with self._turn:
            self._wanted[job] = time.monotonic()
        if self._asking.acquire(blocking=at_once and job not in self._states):  # else another thread asks for all
            try:
                is_due = time.monotonic() - self._asked_at >= self._settings.poll_s
                if is_due or (at_once and job not in self._states):
                    self._ask()
                    self._asked_at = time.monotonic()
            finally:
                self._asking.release()
        return self._states.get(job)

    def _ask(self) -> None:
        with self._turn:
            since = time.monotonic() - 5 * self._settings.poll_s - _LOOK_S
            self._wanted = {job: at for job, at in self._wanted.items() if at > since}
            jobs = set(self._wanted)
        jobs -= {job for job in jobs if (known := self._states.get(job)) is not None and known.has_ended}
        found: dict[str, JobState] = {}
        if jobs:
            with contextlib.suppress(ExecutorError):  # it does not answer, and is asked again; or knows none of them any more
                found = commands.states(self._question(commands.queue(jobs)))
        self._unknown = {job: since for job, since in self._unknown.items() if job not in found}
        if missing := jobs - found.keys():
            with contextlib.suppress(ExecutorError):
                found |= commands.states(self._question(commands.accounted(missing)))
                self._give_up(missing - found.keys(), found)
        self._states = {job: state for job, state in (self._states | found).items() if job in self._wanted}

    def _question(self, command: list[str]) -> str:
        return self.run(command, tries=1, first=True, timeout_s=_QUESTION_TIMEOUT_S)

    def _give_up(self, unknown: set[str], found: dict[str, JobState]) -> None:
        """Of jobs that Slurm's accounts know nothing of: they are lost once that has been so for a while."""
        self._unknown = {job: self._unknown.get(job, time.monotonic()) for job in unknown}
        for job, since in self._unknown.items():
            if time.monotonic() - since > _FORGOTTEN_S:
                found[job] = JobState(state=commands.FORGOTTEN)


def _keep(folder: ExecutionFolder, job: str) -> Job:
    kept = Job(job=job, submitted_at=time.time())
    write_atomically(folder.path / _JOB, msgspec.json.encode(kept))
    return kept


def _read(folder: ExecutionFolder) -> Job | None:
    """What is kept of it; else what its supervisor has said."""
    try:
        return msgspec.json.decode(Path(folder.path, _JOB).read_bytes(), type=Job)
    except (FileNotFoundError, msgspec.DecodeError):
        job = commands.job_of(folder.read_record().native_id)
        return Job(job=job, submitted_at=0.0) if job else None
