"""What dead controllers and supervisors left: found by a cheap look, and put right, one execution after the other.

Nobody needs to call for it: each engine looks once, while its first execution runs, and puts right what it finds. `forge gc` and
the sensor do the same, and beside it what is too slow for a start (see `operations/reconcile.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator

import msgspec

from forge_orchestration.errors import ForgeError, SpecError, StoreError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.executors.admission import ledger_of
from forge_orchestration.executors.registry import make_executor
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.resume import checkpoint, reuse
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.identity import abandoned_claims, release_claim
from forge_orchestration.sandbox.leftovers import close_in_its_place, remove_leftovers
from forge_orchestration.sandbox.orphans import end_orphans, orphans
from forge_orchestration.sandbox.process_identity import read_supervisor, runs_elsewhere
from forge_orchestration.settings import Settings

TRIAL = "forge doctor"
"""What the doctor's execution is called, as no analysis can be: nobody wants its record."""


class Reconciled(msgspec.Struct, kw_only=True):
    """What was done: ids of executions, names of the rest, and what could not be done."""

    alive: int = 0
    closed: list[str] = []
    indexed: list[str] = []
    removed: list[str] = []
    published: list[str] = []
    problems: list[str] = []


class Recovery:
    """Puts right what is left of dead executions of one deployment. Idempotent; may run beside executions that go on.

    Args:
        site: Where the deployment's groups are; None if that is not known.
    """

    def __init__(self, store: Store, settings: Settings, site: CgroupSite | None) -> None:
        self._store, self._settings, self._site = store, settings, site
        self._left: set[str] = set()
        self.elsewhere: set[str] = set()
        self._abandoned: dict[int, str] = {}
        self.report = Reconciled()

    def find(self) -> set[str]:
        """Ids of executions that nobody brings to their end any more; some 100 µs when few are alive.

        They are unfinished, or something of them is left: a workspace, a group, a claim on a uid.
        """
        folder = self._settings.executions_dir
        unfinished = self._store.unfinished_controllers().keys()
        workspaces = set(os.listdir(self._settings.scratch_dir))
        self._abandoned = abandoned_claims()
        elsewhere = set(self._abandoned.values())  # claims and groups are the host's: what is not here is another deployment's
        for groups in self._site.folders("executions") if self._site is not None else ():
            with contextlib.suppress(FileNotFoundError):
                elsewhere.update(os.listdir(groups))
        self._left = workspaces | {name for name in elsewhere if os.path.isdir(folder / name)}
        dead = {one for one in unfinished | self._left if not self.is_alive(one)}
        self.report.alive = len(unfinished - dead)
        self.elsewhere = {one for one in unfinished - dead if runs_elsewhere(ExecutionFolder(folder, one))}
        return dead

    def look_elsewhere(self) -> None:
        """Have those brought to their end that other hosts were given, and that have ended there without anybody who waits for them."""
        for execution_id in sorted(self.elsewhere):
            if controller_lives(self._store.controller(execution_id)):
                continue
            try:
                if has_ended_elsewhere(ExecutionFolder(self._settings.executions_dir, execution_id), self._settings):
                    self.recover([execution_id])
            except (ForgeError, OSError) as error:
                self.report.problems.append(f"{execution_id}: {error}")

    def nameless(self) -> bool:
        """Whether `find` has seen, or there is, something of dead supervisors that names no execution of this deployment."""
        return bool(self._abandoned) or (self._site is not None and bool(orphans(self._site)))

    def remove_nameless(self) -> None:
        """Remove that: helpers that did not end with their supervisor, claims on uids as which nobody runs, places in the queue."""
        try:
            if self._site is not None and (ended := end_orphans(self._site)):
                self.report.removed.append(f"{ended} helpers of dead supervisors")
            self.report.removed += [f"place of {one} in the queue" for one in ledger_of(self._settings).drop_unheld()]
        except ForgeError as error:
            self.report.problems.append(str(error))
        self.report.removed += [f"claim on uid {uid}" for uid in abandoned_claims() if release_claim(uid)]

    def is_alive(self, execution_id: str) -> bool:
        """Whether a supervisor or a controller is there to bring an execution to its end, or it is none of ours."""
        try:
            folder = ExecutionFolder(self._settings.executions_dir, execution_id)
        except SpecError:
            return True
        return somebody_is_there(folder, self._store)

    def recover(self, execution_ids: Iterable[str]) -> None:
        """Bring each, of which nobody is alive, to its end; what cannot be done is told among the problems."""
        for execution_id in sorted(execution_ids):
            folder = ExecutionFolder(self._settings.executions_dir, execution_id)
            with folder.locked(wait=False) as ours:
                if not ours and folder.path.exists():
                    self.report.alive += 1  # it has a supervisor, which has not said so yet
                    continue
                try:
                    self._recover(folder)
                except (ForgeError, OSError) as error:
                    self.report.problems.append(f"{execution_id}: {error}")

    def _recover(self, folder: ExecutionFolder) -> None:
        if folder.never_began:
            remove_leftovers(folder, self._settings, self._site)
            folder.remove()
            self._store.forget(folder.id)
            self.report.removed.append(f"execution {folder.id}, which never began")
            return
        record = folder.read_record()
        if record.analysis == TRIAL:
            remove_leftovers(folder, self._settings, self._site)
            folder.remove()
            self._store.forget(folder.id)
            self.report.removed.append(f"trial {folder.id}")
            return
        if not record.status.is_final or folder.id in self._left:
            done = self.report.removed if record.status.is_final else self.report.closed
            when = "before the analysis began" if record.status is Status.QUEUED else "while the analysis ran"
            said = f"Forge was killed {when}. Run it again."
            record = close_in_its_place(folder, self._settings, EndReason.CONTROLLER_LOST, said, self._site)
            done.append(folder.id if done is self.report.closed else f"leftovers of {folder.id}")
        if record.wants_second_look and record.guard is not None:
            record = record.with_guard(record.guard.not_looked_after("the controller was lost"))
            folder.write_record(record)
        confirmed = reuse.confirmed(record, folder, self._store)
        if confirmed is not record:
            folder.write_record(confirmed)
        checkpoint.forget(confirmed, self._settings)
        if self._store.status(folder.id) != record.status or confirmed is not record:
            self._store.save(confirmed)
            if folder.id not in self.report.closed:
                self.report.indexed.append(folder.id)


def somebody_is_there(folder: ExecutionFolder, store: Store) -> bool:
    """Whether a supervisor or a controller is there to bring an execution to its end."""
    with contextlib.suppress(StoreError):  # what cannot be read is told when it is to be closed
        supervisor = read_supervisor(folder)
        if (supervisor is not None and supervisor.is_alive) or runs_elsewhere(folder):
            return True
    return controller_lives(store.controller(folder.id))


def has_ended_elsewhere(folder: ExecutionFolder, settings: Settings) -> bool:
    """Whether an execution that another host was given has ended; its executor is asked, and brings it to its end if nobody else does.

    Raises:
        ForgeError: It cannot be asked.
    """
    record = folder.read_record()
    executor = make_executor(record.executor, settings)
    return executor.poll(executor.reattach(record.native_id or "", folder.id)).is_final


def controller_lives(controller: tuple[int, int] | None) -> bool:
    """Whether the process with this pid and start time runs."""
    # one of an earlier boot may have the pid and, by chance, the start time of another process: its execution waits a boot
    return controller is not None and linux.start_time(controller[0]) == controller[1]


@contextlib.contextmanager
def one_at_a_time(settings: Settings, *, wait: bool) -> Iterator[bool]:
    """No two recoveries of one deployment at once; False if, unless `wait`, another one is at work."""
    fd = os.open(settings.executions_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)


def recover_meanwhile(store: Store, settings: Settings, site: CgroupSite | None) -> threading.Thread | None:
    """Look, and if there is something to put right, do it in a thread; None if there is nothing."""
    recovery = Recovery(store, settings, site)
    dead = recovery.find()
    if not dead and not recovery.nameless() and not recovery.elsewhere:
        return None

    def put_right() -> None:
        with contextlib.suppress(ForgeError, OSError), one_at_a_time(settings, wait=False) as alone:
            if alone:
                recovery.recover(dead)
                recovery.remove_nameless()
                recovery.look_elsewhere()

    thread = threading.Thread(target=put_right, name="forge recovery", daemon=True)
    thread.start()
    return thread
