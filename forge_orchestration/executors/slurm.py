"""The `slurm` executor: a job an execution, and on its node the sandbox and the supervisor that the local executor would make."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import msgspec

from forge_orchestration.errors import ExecutorError
from forge_orchestration.executions.folder import ExecutionFolder, write_atomically
from forge_orchestration.executions.store import Store
from forge_orchestration.executors import node
from forge_orchestration.executors import slurm_commands as commands
from forge_orchestration.executors.base import ExecutionHandle, ExecutionState, ExecutorCapabilities, PreparedExecution
from forge_orchestration.executors.local import LocalExecutor
from forge_orchestration.executors.planned import PlannedExecutor
from forge_orchestration.executors.recovery import recover_meanwhile
from forge_orchestration.executors.slurm_cluster import LOOK_S, Cluster, Submission, asked_for
from forge_orchestration.executors.slurm_commands import JobState
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import Cleanup, ExecutionRecord
from forge_orchestration.model.sections import SlurmSettings
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.leftovers import close_in_its_place
from forge_orchestration.settings import Settings

_CANCEL_AGAIN_S = 5.0
_TOLD_APART_S = 30.0
_JOB = "job.json"


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
    _clusters: dict[SlurmSettings, Cluster] = {}
    _clusters_lock = threading.Lock()

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        with self._clusters_lock:  # one a process, whatever the number of executions and engines
            if settings.slurm not in self._clusters:
                self._clusters[settings.slurm] = Cluster(settings.slurm)
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
            settings = self._settings
            places = (settings.cgroup.parent, settings.slurm.scratch_dir or settings.scratch_dir, settings.cache_dir)
            submission = Submission(
                resources=commands.resources(spec.limits, settings.slurm), entry_point=node.entry_point(settings.slurm.python),
                executions=str(settings.executions_dir), places=tuple(map(str, places)),
            )  # fmt: skip
            return self._handle(folder, _keep(folder, self._cluster.submit(folder, submission)))

    def _found(self, folder: ExecutionFolder) -> Job | None:
        """The job of an execution whose number was not heard: its controller was killed at that moment, or no answer came."""
        if (asked := asked_for(folder)) is None:
            return None
        found = self._cluster.numbers_of(asked.name)
        return _keep(folder, commands.task_of(found[0], asked.task)) if found else None

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
            time.sleep(LOOK_S if deadline is None else max(0.0, min(LOOK_S, deadline - time.monotonic())))

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
            time.sleep(LOOK_S)
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
        asked = asked_for(folder)
        if asked is not None and (_read(folder) is None or not folder.read_record().status.is_final):
            with contextlib.suppress(ExecutorError):
                for job in self._cluster.numbers_of(asked.name, tries=2, first=True):
                    self._cluster.run(commands.remove(commands.task_of(job, asked.task)), tries=2, first=True)
        return Cleanup(finished_at=time.time())


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
