"""Admission: an execution starts only when its limits fit in what the others leave; until then it waits, in order.

The ledger of who runs and who waits belongs to the cgroup parent, not to a `FORGE_HOME`: deployments that share the parent
share its capacity. It is a small file, changed under a lock by whoever comes or goes; there is no process that keeps it.
Whoever changes it lets in those whose turn it then is, and rings for them. What a dead process claims is not counted: before
anyone is made to wait, and about once a second while anyone waits, each claim is compared with what the kernel knows.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from forge_orchestration.errors import BackendUnavailableError, ForgeError, HostError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.capacity import COUNTED, Capacity, check_capacity
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.limits import Limits
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.cgroups.find import CgroupSite, expected_site, shared_group
from forge_orchestration.sandbox.cgroups.total import Total, within_what_is_above
from forge_orchestration.sandbox.identity import claims_folder
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration.settings import Settings

LEDGERS = Path("/run/forge/admission")
_CHECK_EVERY_S = 1.0
_CANCEL_LOOK_S = 0.25
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_HEAD = struct.Struct("<BI")  # which book holds, and its length in bytes
_ROOM_BYTES = 16 * 2**20
_BOOK_AT = (4096, 4096 + _ROOM_BYTES)  # the file is sparse


class Claim(msgspec.Struct, kw_only=True):
    """One execution that runs or waits.

    Attributes:
        ticket: Numbers claims in the order in which they came.
        limits: What it asks for.
        capacity: What its own deployment gives to all.
        pid, start_time: Its controller.
        folder: The execution's; its record names the supervisor, once there is one.
        group: A cgroup folder of the execution.
        granted: Whether it may run.
    """

    execution_id: str
    priority: int
    limits: Limits
    capacity: Capacity
    pid: int
    start_time: int
    folder: str
    group: str
    ticket: int = 0
    granted: bool = False

    def is_held(self) -> bool:
        """Whether somebody stands behind it: its supervisor, before there is one its controller, or a process of its group."""
        supervisor = None
        with contextlib.suppress(ForgeError):  # a record that cannot be read names none
            supervisor = read_supervisor(ExecutionFolder(Path(self.folder).parent, self.execution_id))
        if supervisor is not None and supervisor.is_alive:
            return True
        if supervisor is None and linux.start_time(self.pid) == self.start_time:
            return True
        return self.has_processes()

    def has_processes(self) -> bool:
        """Whether a process of the execution is left, by the kernel's word."""
        try:
            return bool(Path(self.group, "cgroup.procs").read_bytes())
        except OSError:
            return False


@compiled
class Book(msgspec.Struct, kw_only=True):
    """Who runs and who waits for one cgroup parent. No I/O but for the looks at who is alive."""

    boot_id: str
    next_ticket: int = 0
    checked_at: float = 0.0
    claims: list[Claim] = []

    @property
    def running(self) -> list[Claim]:
        """Claims that were let in."""
        return [claim for claim in self.claims if claim.granted]

    @property
    def waiting(self) -> list[Claim]:
        """Claims that were not, the next one first."""
        return sorted((claim for claim in self.claims if not claim.granted), key=lambda claim: (-claim.priority, claim.ticket))

    def find(self, execution_id: str) -> Claim | None:
        """The claim of an execution."""
        return next((claim for claim in self.claims if claim.execution_id == execution_id), None)

    def add(self, claim: Claim) -> None:
        """Take a claim in, behind all that are there."""
        claim.ticket = self.next_ticket
        self.next_ticket += 1
        self.claims.append(claim)

    def let_in(self) -> None:
        """Let in whoever's turn it is. The first that does not fit stops all behind it, so that a large one is not starved."""
        for claim in self.waiting:
            if self.lacking(claim):
                break
            claim.granted = True

    def lacking(self, claim: Claim) -> str:
        """What is not there for `claim`, in words; empty if its limits fit."""
        running, capacity = self.running, claim.capacity
        for field, (show, noun) in COUNTED.items():
            there = getattr(capacity, field)
            if there is not None:
                asked, taken = getattr(claim.limits, field), sum(getattr(one.limits, field) for one in running)
                if asked + taken > there * (1 + 1e-9):  # cores are fractions
                    return f"it asks for {show(asked)} {noun}, and {show(taken)} of {show(there)} are taken"
        if capacity.executions is not None and len(running) >= capacity.executions:
            return f"{len(running)} executions run, which is all that may"
        return ""

    def why(self, claim: Claim) -> str:
        """What a claim that is not granted waits for, in words."""
        before = self.waiting.index(claim)
        words = [self.lacking(claim), f"{before} {'waits' if before == 1 else 'wait'} before it" if before else ""]
        return "; ".join(word for word in words if word)

    def drop_unheld(self, now: float) -> list[Claim]:
        """Remove and return the claims that nobody stands behind any more."""
        self.checked_at = now
        gone = [claim for claim in self.claims if not claim.is_held()]
        self.claims = [claim for claim in self.claims if claim not in gone]
        return gone


class Ledger:
    """The book of one cgroup parent, as a file.

    The file has room for two books, and its first bytes say which one holds: a process that is killed while it writes leaves
    the other. A new file moved into place would do the same for forty times the cost where `/run` is on a disk.

    Raises (from every method):
        HostError: The file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Book:
        """As it is now."""
        if not self._path.exists():
            return Book(boot_id=_boot_id())
        with self._opened(fcntl.LOCK_SH) as fd:
            return self._read(fd)[1]

    @contextlib.contextmanager
    def changed(self) -> Iterator[Book]:
        """The book, for one change at a time on the whole host; on leaving, those whose turn it is are let in and rung for."""
        with self._opened(fcntl.LOCK_EX) as fd:
            holds, book = self._read(fd)
            waited = book.waiting
            yield book
            book.let_in()
            data = msgspec.json.encode(book)
            if len(data) > _ROOM_BYTES:
                raise HostError(f"There is no room for more executions in {self._path}.", "Try again when there are fewer.")
            os.pwrite(fd, data, _BOOK_AT[1 - holds])
            os.pwrite(fd, _HEAD.pack(1 - holds, len(data)), 0)
        for claim in waited:
            if claim.granted:
                _ring(claim.execution_id)

    def drop_unheld(self) -> list[str]:
        """Remove what dead processes claim; returns their executions' ids."""
        if not self._path.exists():
            return []
        with self.changed() as book:
            return [claim.execution_id for claim in book.drop_unheld(time.monotonic())]

    def _read(self, fd: int) -> tuple[int, Book]:
        """Which of the two holds, and the book."""
        head = os.pread(fd, _HEAD.size, 0)
        if not head.strip(b"\0"):  # new, or whoever made it was killed before it said anything
            return 0, Book(boot_id=_boot_id())
        try:
            holds, size = _HEAD.unpack(head)
            book = msgspec.json.decode(os.pread(fd, size, _BOOK_AT[holds]), type=Book)
        except (struct.error, IndexError, msgspec.DecodeError) as error:
            raise HostError(
                f"The list of executions that run and wait, {self._path}, cannot be read: {error}.",
                "Remove it when no execution runs.",
            ) from error
        return holds, book if book.boot_id == _boot_id() else Book(boot_id=_boot_id())  # nothing outlives a boot

    @contextlib.contextmanager
    def _opened(self, lock: int) -> Iterator[int]:
        try:
            try:
                fd = os.open(self._path, _OPEN, 0o600)
            except FileNotFoundError:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = os.open(self._path, _OPEN, 0o600)
            try:
                fcntl.flock(fd, lock)
                yield fd
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough where another thread has just forked
                os.close(fd)
        except OSError as error:
            raise HostError(
                f"The list of executions that run and wait, {self._path}, cannot be used: {error.strerror or error}."
            ) from error


def ledger_of(settings: Settings) -> Ledger:
    """The ledger of the cgroup parent that a deployment uses: root's in `/run`, a user's where the user's claims on uids are."""
    folder = LEDGERS if os.geteuid() == 0 else claims_folder().with_name("admission")
    return Ledger(folder / f"{shared_group(settings.cgroup.parent).replace('/', ',')}.claims")


def standing(settings: Settings) -> tuple[Capacity, Book]:
    """What all executions together may use, and who runs and who waits, without what dead processes claim; changes nothing.

    Raises:
        HostError: The ledger cannot be read.
    """
    capacity = within_what_is_above(settings.capacity, expected_site(settings.cgroup.parent))
    book = ledger_of(settings).read()
    book.claims = [claim for claim in book.claims if claim.is_held()]
    return capacity, book


class Admission:
    """The queue before one cgroup parent, as one controller uses it. Every method may be called from any thread."""

    def __init__(self, settings: Settings, site: CgroupSite) -> None:
        self._capacity = within_what_is_above(settings.capacity, site)
        self._total = Total(site, self._capacity)
        self._groups = str(site.folders("executions")[0])
        self._ledger = ledger_of(settings)

    def check(self, limits: Limits) -> None:
        """Whether an execution with these limits can ever start.

        Raises:
            SpecError: It cannot; the sentence says which limit is too large.
        """
        check_capacity(limits, self._capacity)

    def enter(self, execution_id: str, limits: Limits, priority: int, folder: Path) -> str:
        """Claim a place for an execution.

        Returns:
            What it has to wait for, in words; empty if it may start now. Either way it has a claim, until `leave`.

        Raises:
            HostError: The kernel does not hold the sum, or the ledger cannot be used. There is no claim then.
        """
        claim = Claim(
            execution_id=execution_id, priority=priority, limits=limits, capacity=self._capacity, pid=os.getpid(),
            start_time=_started(os.getpid()), folder=str(folder), group=f"{self._groups}/{execution_id}",
        )  # fmt: skip
        with self._ledger.changed() as book:
            self._total.hold(raise_only=bool(book.running))
            book.add(claim)
            book.let_in()
            if claim.granted:
                return ""
            book.drop_unheld(time.monotonic())
            book.let_in()
            return "" if claim.granted else book.why(claim)

    def wait(self, execution_id: str, cancel: threading.Event | None) -> bool:
        """Wait for the turn of an execution that has entered; False if it was canceled first.

        Nothing is done meanwhile but a look at `cancel` four times a second, and one at the ledger when it rings or once a
        second, in case whoever should have rung was killed.

        Raises:
            BackendUnavailableError: Its claim is gone: somebody removed the ledger.
            HostError: The ledger cannot be used.
        """
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as bell:
            bell.bind(_bell(execution_id))
            poll = select.poll()
            poll.register(bell, select.POLLIN)
            look_at = 0.0
            while cancel is None or not cancel.is_set():
                if time.monotonic() >= look_at:
                    if self._is_granted(execution_id):
                        return True
                    look_at = time.monotonic() + _CHECK_EVERY_S
                if poll.poll(_CANCEL_LOOK_S * 1000):
                    bell.recv(1)
                    look_at = 0.0
            return False

    def leave(self, execution_id: str) -> None:
        """Give up the claim of an execution that has ended or never began. While a process of it is left it is still counted."""
        with contextlib.suppress(HostError), self._ledger.changed() as book:  # a claim that stays is dropped at the next check
            claim = book.find(execution_id)
            if claim is None:
                return
            claim.pid = 0
            if not claim.has_processes():
                book.claims.remove(claim)

    def _is_granted(self, execution_id: str) -> bool:
        claim = self._mine(self._ledger.read(), execution_id)
        if claim.granted:
            return True
        with self._ledger.changed() as book:
            now = time.monotonic()
            if now - book.checked_at >= _CHECK_EVERY_S:  # one look serves all who wait
                book.drop_unheld(now)
                book.let_in()
            return self._mine(book, execution_id).granted

    def _mine(self, book: Book, execution_id: str) -> Claim:
        if (claim := book.find(execution_id)) is None:
            raise BackendUnavailableError(f"The place of {execution_id} in the queue is gone.", "Run it again.")
        return claim


def _bell(execution_id: str) -> str:
    # an abstract name: nothing to remove, gone with its owner, and out of reach of every sandbox
    return f"\0forge/admission/{execution_id}"


def _ring(execution_id: str) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as caller:
        caller.sendto(b"1", _bell(execution_id))  # nobody there: it has not begun to wait, and will look first


@functools.cache
def _started(pid: int) -> int:
    return linux.start_time(pid) or 0


@functools.cache
def _boot_id() -> str:
    return linux.boot_id()
