"""What one process knows of a Slurm cluster, and the one place where Slurm's commands are run."""

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
from forge_orchestration.executors import slurm_commands as commands
from forge_orchestration.executors.slurm_commands import JobState
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.sections import SlurmSettings

LOOK_S = 0.1
_COMMAND_TIMEOUT_S = 60.0
_TRIES = 5
_BELIEVED_S = 30.0
_QUESTION_TIMEOUT_S = 10.0
_FORGOTTEN_S = 300.0
_ASKED = "job.asked"


@compiled
class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """`job.asked` in the execution's folder: what the job is called that was asked for, and which task of it is this execution's.

    Attributes:
        task: None if it is no array.
    """

    name: str
    task: int | None = None


def asked_for(folder: ExecutionFolder) -> Asked | None:
    """What was asked for in an execution's name; None if nothing was."""
    try:
        return msgspec.json.decode(Path(folder.path, _ASKED).read_bytes(), type=Asked)
    except FileNotFoundError:
        return None


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """What submissions must have in common to be the tasks of one array.

    Attributes:
        resources: In the words of `sbatch`.
        entry_point: The command of the entry point, on the node.
        executions: The folder that has those of executions, of which the entry point is told one.
        places: Its other arguments.
    """

    resources: tuple[str, ...]
    entry_point: tuple[str, ...]
    executions: str
    places: tuple[str, ...]


class _Array:
    """Executions that go with one command, and what came of it."""

    def __init__(self) -> None:
        self.folders: list[ExecutionFolder] = []
        self.ended = threading.Event()
        self.job: str | None = None
        self.error: ExecutorError | None = None


class _AlreadyThere(Exception):
    """A command whose answer was lost has done its work."""


class Cluster:
    """What one process knows of a cluster, and the one place where Slurm's commands are run.

    Never more of them a minute than the settings allow: what is submitted while others wait for their turn goes with one command, as
    an array, and whoever waits for a job is told by the same question.
    """

    def __init__(self, settings: SlurmSettings) -> None:
        self._settings = settings
        self._pause_s = 60.0 / settings.commands_per_minute
        self._next = 0.0
        self._turn, self._asking, self._checking = threading.Lock(), threading.Lock(), threading.Lock()
        self._arrays: dict[Submission, _Array] = {}
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
                self.run(commands.ANY_PARTITION, tries=2, first=True)
                self._checked_at = time.monotonic()

    def run(
        self,
        command: list[str],
        script: str | None = None,
        *,
        tries: int = _TRIES,
        again: Callable[[], bool] = lambda: True,
        first: bool = False,
        has_turn: bool = False,
        timeout_s: float = _COMMAND_TIMEOUT_S,
    ) -> str:
        """What a command prints, tried again while Slurm does not answer.

        Args:
            script: Its standard input.
            again: Whether it is still to be done, asked before another try.
            first: Whether it goes before all that wait for their turn.
            has_turn: Whether its turn has come.

        Raises:
            HostError: Slurm's commands are not installed.
            BackendUnavailableError: Slurm does not answer.
            ExecutorError: It refuses.
        """
        environment = {name: os.environ[name] for name in commands.PASSED_ON if name in os.environ}
        wait_s, said = 0.5, ""
        for number in range(1, tries + 1):
            if not has_turn or number > 1:
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
        raise BackendUnavailableError(f"Slurm does not answer: {command[0]}: {said}.", commands.remedy(said))

    def _wait_for_turn(self, first: bool) -> None:
        with self._turn:
            now = time.monotonic()
            at = now if first else max(now, self._next)
            self._next = max(now, self._next) + self._pause_s  # the others make up for who goes first
        time.sleep(at - now)

    def submit(self, folder: ExecutionFolder, submission: Submission) -> str:
        """Submit an execution, whose folder the caller has locked; returns its job.

        Raises:
            SubmitError: Slurm refuses, does not answer, or says what is no job's number.
        """
        with self._turn:
            array = self._arrays.get(submission)
            leads = array is None
            if array is None:
                array = self._arrays[submission] = _Array()
            number = len(array.folders)
            array.folders.append(folder)
            if len(array.folders) == self._settings.array_size:
                del self._arrays[submission]  # the next begins another
        if leads:
            try:
                self._wait_for_turn(first=False)
                with self._turn:  # from now on nobody joins
                    if self._arrays.get(submission) is array:
                        del self._arrays[submission]
                array.job = self._submit(array.folders, submission)
            except ExecutorError as error:
                array.error = error
            finally:
                array.ended.set()
        array.ended.wait()
        if array.job is None:
            why = array.error or ExecutorError("Who was to submit it was interrupted.", "Run it again.")
            raise SubmitError(why.message, why.hint) from why
        return commands.task_of(array.job, number if len(array.folders) > 1 else None)

    def _submit(self, folders: list[ExecutionFolder], submission: Submission) -> str:
        ids = [folder.id for folder in folders]
        name = commands.name_of(ids)
        for number, folder in enumerate(folders):
            asked = Asked(name=name, task=number if len(folders) > 1 else None)
            write_atomically(folder.path / _ASKED, msgspec.json.encode(asked))
        script = commands.script(submission.entry_point, submission.executions, ids, submission.places)
        try:
            answer = self.run(
                commands.submit(ids, submission.resources), script, has_turn=True, again=lambda: not self.numbers_of(name)
            )
        except _AlreadyThere:
            return self.numbers_of(name)[0]
        if (job := commands.submitted(answer)) is None:
            raise SubmitError(f"Slurm said '{answer[:200]}' where it should have said the job's number.")
        return job

    def numbers_of(self, name: str, *, tries: int = _TRIES, first: bool = False) -> list[str]:
        """The jobs, or arrays, of a name."""
        questions = (commands.named(name), commands.accounted_name(name))
        answers = (commands.numbers(self.run(question, tries=tries, first=first)) for question in questions)
        return next(filter(None, answers), [])

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
            since = time.monotonic() - 5 * self._settings.poll_s - LOOK_S
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
