"""Who executes a Dagster run: one process, and what is known of it. A folder a run, `FORGE_HOME/dagster/workers/<run>`.

Nothing of this is in a run's tags: those may be set by whoever launches a run, and a process that is believed is ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from forge_orchestration.errors import ForgeError, SpecError, StoreError
from forge_orchestration.executions.folder import write_atomically
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.process_identity import ProcessIdentity

RUN_WORKER = "FORGE_RUN_WORKER"
"""The environment variable in which a worker that was launched finds the id of its run."""
_T = TypeVar("_T")
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}")


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """The process that executes a run.

    Attributes:
        keeper: Who started it within its limits and writes down its end; None for a command that somebody started themselves.
    """

    process: ProcessIdentity
    keeper: ProcessIdentity | None = None

    def ask_to_end(self) -> None:
        """Have it end, within the keeper's grace if it has one; returns at once."""
        if self.keeper is not None and self.keeper.is_alive:
            self.keeper.send(signal.SIGTERM)
        else:
            self.process.send(signal.SIGTERM)


class WorkerEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker ended that was launched.

    Attributes:
        exit_code: Or minus the number of the signal that killed it.
        oom_kills: Processes of its group that the kernel killed for want of memory.
        killed_after_s: How long after it was asked to end its whole group was killed; None if it ended by itself.
    """

    exit_code: int
    oom_kills: int = 0
    peak_memory_bytes: float | None = None
    killed_after_s: float | None = None

    def __str__(self) -> str:
        how = f"was killed by signal {-self.exit_code}" if self.exit_code < 0 else f"ended with exit code {self.exit_code}"
        if self.oom_kills:
            how += ": it had no memory left within its own limit"
        if self.killed_after_s is not None:
            how += f", {self.killed_after_s:g} s after it was asked to end"
        return how


# made here, once: threads read with them
_worker_decoder, _end_decoder = msgspec.json.Decoder(Worker), msgspec.json.Decoder(WorkerEnd)


class WorkerFolder:
    """What is known of the worker of one run.

    Raises:
        SpecError: The run's id cannot be the name of a folder and of a group.
    """

    def __init__(self, workers_dir: Path, run_id: str) -> None:
        if not _ID.fullmatch(run_id):
            raise SpecError(f"The run id {run_id[:120]!r} cannot name a worker.", "Use letters, digits, '-' and '_', at most 100.")
        self.run_id = run_id
        self.path = workers_dir / run_id
        self.log = self.path / "worker.log"

    def make(self) -> None:
        """Make it, closed to other users."""
        for folder in (self.path.parent.parent, self.path.parent, self.path):
            folder.mkdir(mode=0o700, exist_ok=True)

    def worker(self) -> Worker | None:
        """The latest; None if none is known.

        Raises:
            StoreError: What is written there is none.
        """
        return self._read("worker.json", _worker_decoder)

    def end(self) -> WorkerEnd | None:
        """How the latest ended; None if it lives, or nobody saw its end.

        Raises:
            StoreError: What is written there is none.
        """
        return self._read("end.json", _end_decoder)

    def began(self, worker: Worker) -> None:
        """Write down who executes the run now."""
        self.make()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path / "end.json")
        write_atomically(self.path / "worker.json", msgspec.json.encode(worker))

    def ended(self, end: WorkerEnd) -> None:
        """Write down how it ended."""
        write_atomically(self.path / "end.json", msgspec.json.encode(end))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No two processes start a worker of one run at once."""
        self.make()
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _read(self, name: str, decoder: msgspec.json.Decoder[_T]) -> _T | None:
        try:
            return decoder.decode((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise StoreError(f"{self.path / name} cannot be read: {error}.", "Remove that folder.") from error


def register_this_process(workers_dir: Path, run_id: str) -> None:
    """Say that this process executes a run, unless a launcher has said so: then nobody takes the run for lost while it lives."""
    if os.environ.get(RUN_WORKER) == run_id:
        return
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    WorkerFolder(workers_dir, run_id).began(Worker(process=me))


def remove_groups(site: CgroupSite, workers_dir: Path) -> tuple[list[str], list[str]]:
    """Remove the groups of workers that have ended, and whose keepers were killed.

    Returns:
        The ids of their runs, and what could not be put right.
    """
    try:
        names = set(os.listdir(site.folders("workers")[0])) & set(os.listdir(workers_dir))
    except FileNotFoundError:
        return [], []
    removed, problems = [], []
    for run_id in sorted(names):
        try:
            if _remove_group(site, WorkerFolder(workers_dir, run_id)):
                removed.append(run_id)
        except (ForgeError, OSError) as error:  # of one run, and no matter of the others
            problems.append(f"worker of run {run_id}: {error}")
    return removed, problems


def _remove_group(site: CgroupSite, folder: WorkerFolder) -> bool:
    with folder.locked():  # nobody starts one now
        worker = folder.worker()
        if worker is None or worker.process.is_alive or (worker.keeper is not None and worker.keeper.is_alive):
            return False
        group = site.worker(folder.run_id)
        group.end()  # what it had started itself
        return group.remove()
