"""Who is let in, in which order, and whose claim is not counted: the book by itself, and as a file that several change."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import threading
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.errors import BackendUnavailableError, HostError, SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executors import admission
from forge_orchestration.executors.admission import Admission, Book, Claim, Ledger, ledger_of
from forge_orchestration.model.capacity import Capacity
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.process_identity import ProcessIdentity
from forge_orchestration.settings import Settings
from forge_orchestration_tests.conftest import wait_until

CAPACITY = Capacity(memory_bytes=100, pids=1000)


def claim(
    name: str, memory: int = 10, *, priority: int = 0, capacity: Capacity = CAPACITY, folder: str = "/nowhere", **limits: float
) -> Claim:
    """Of a process that lives: this one."""
    return Claim(
        execution_id=name, priority=priority, limits=Limits(memory_bytes=memory, **limits), capacity=capacity, pid=os.getpid(),
        start_time=linux.start_time(os.getpid()) or 0, folder=folder, group="/nowhere",
    )  # fmt: skip


def book_of(*claims: Claim) -> Book:
    """Each came in this order, and who could be let in was."""
    book = Book(boot_id="b")
    for one in claims:
        book.add(one)
        book.let_in()
    return book


def names(claims: list[Claim]) -> list[str]:
    return [one.execution_id for one in claims]


def leave(book: Book, name: str) -> None:
    one = book.find(name)
    assert one is not None
    book.claims.remove(one)
    book.let_in()


class TestOrder:
    def test_who_fits_is_let_in(self) -> None:
        book = book_of(claim("a", 60), claim("b", 40), claim("c", 1))
        assert names(book.running) == ["a", "b"] and names(book.waiting) == ["c"]

    def test_first_come_first_served(self) -> None:
        book = book_of(claim("a", 100), claim("b", 100), claim("c", 100))
        leave(book, "a")
        assert names(book.running) == ["b"]

    def test_priority_goes_before_time(self) -> None:
        book = book_of(claim("a", 100), claim("b", 100), claim("c", 100, priority=1), claim("d", 100, priority=-1))
        assert names(book.waiting) == ["c", "b", "d"]
        leave(book, "a")
        assert names(book.running) == ["c"]

    def test_a_large_one_is_not_overtaken_by_small_ones_that_would_fit(self) -> None:
        book = book_of(claim("a", 60), claim("large", 80), claim("small", 10))
        assert names(book.running) == ["a"], "40 are free, and small has to wait all the same"
        leave(book, "a")
        assert names(book.running) == ["large", "small"]

    def test_a_stream_of_small_ones_does_not_starve_a_large_one(self) -> None:
        chance = random.Random(5)
        book = book_of(*(claim(f"before {number}", 10) for number in range(10)), claim("large", 100))
        for number in range(10):  # one comes for each that goes
            book.add(claim(f"after {number}", 10))
            leave(book, chance.choice([one.execution_id for one in book.running]))
        assert names(book.running) == ["large"]

    def test_only_a_higher_priority_overtakes(self) -> None:
        book = book_of(claim("a", 60), claim("large", 80), claim("same", 10), claim("higher", 10, priority=1))
        assert names(book.running) == ["a", "higher"]

    def test_a_large_one_of_high_priority_is_not_overtaken_by_who_came_before(self) -> None:
        book = book_of(claim("a", 60), claim("b", 50), claim("large", 80, priority=1))
        leave(book, "a")
        assert names(book.running) == ["large"] and names(book.waiting) == ["b"]

    @pytest.mark.parametrize("seed", range(20))
    def test_whatever_comes_and_goes_nothing_exceeds_and_nobody_is_overtaken(self, seed: int) -> None:
        chance = random.Random(seed)
        capacity = Capacity(memory_bytes=100, pids=60, scratch_bytes=90, cpus=2.5, executions=6)
        book, served = Book(boot_id="b"), []
        for number in range(200):
            before = set(names(book.running))
            if book.running and chance.random() < 0.45:
                leave(book, chance.choice(names(book.running)))
            else:
                sizes = {
                    "pids": chance.randint(1, 60),
                    "scratch_bytes": chance.randint(1, 90),
                    "cpus": chance.choice([0.1, 0.5, 2.5]),
                }
                book.add(claim(str(number), chance.randint(1, 100), priority=chance.randint(-1, 1), capacity=capacity, **sizes))
                book.let_in()
            for field in ("memory_bytes", "pids", "scratch_bytes", "cpus"):
                assert sum(getattr(one.limits, field) for one in book.running) <= getattr(capacity, field) + 1e-9
            assert len(book.running) <= 6
            served += [one for one in book.running if one.execution_id not in before]
            for one in served:
                older = [other for other in book.waiting if other.ticket < one.ticket and other.priority >= one.priority]
                assert not [other.execution_id for other in older if other.priority == one.priority]
        while book.claims:
            leave(book, book.running[0].execution_id)  # somebody always runs: nobody waits for ever
        assert len(served) > 50


class TestWhatIsLacking:
    @pytest.mark.parametrize(
        ("taken", "asked", "capacity", "words"),
        [
            ({"memory": 60}, {"memory": 60}, {}, "asks for 60 B memory, and 60 B of 100 B are taken"),
            ({"pids": 600}, {"pids": 600}, {}, "asks for 600 processes, and 600 of 1000 are taken"),
            ({"scratch_bytes": 6}, {"scratch_bytes": 6}, {"scratch_bytes": 10}, "6 B scratch"),
            ({"cpus": 1.5}, {"cpus": 0.6}, {"cpus": 2.0}, "asks for 0.6 cores, and 1.5 of 2 are taken"),
            ({}, {}, {"executions": 1}, "1 executions run, which is all that may"),
        ],
        ids=["memory", "pids", "scratch", "cpus", "executions"],
    )
    def test_each_is_counted_and_named(self, taken: dict, asked: dict, capacity: dict, words: str) -> None:
        there = msgspec.structs.replace(CAPACITY, **capacity)
        waits = claim("b", **asked, capacity=there)
        book = book_of(claim("a", **taken, capacity=there), waits)
        assert names(book.waiting) == ["b"] and words in book.why(waits)

    @pytest.mark.parametrize("limits", [{"scratch_bytes": 2**60}, {"cpus": 1000.0}])
    def test_what_has_no_capacity_is_not_counted(self, limits: dict) -> None:
        assert names(book_of(claim("a", **limits), claim("b", **limits)).running) == ["a", "b"]

    def test_a_tenth_ten_times_is_one_core(self) -> None:
        capacity = msgspec.structs.replace(CAPACITY, cpus=1.0)
        assert len(book_of(*(claim(str(number), 1, cpus=0.1, capacity=capacity) for number in range(11))).running) == 10

    def test_how_many_wait_before_it(self) -> None:
        third = claim("d", 1)
        book = book_of(claim("a", 100), claim("b", 100), claim("c", 100), third)
        assert book.why(third).endswith("; 2 wait before it")
        leave(book, "a")
        fits = claim("e", 1)
        assert book_of(claim("a", 60), claim("b", 80), fits).why(fits) == "1 waits before it", "there would be room"

    def test_a_deployment_that_has_less_waits_and_the_other_does_not(self) -> None:
        small = Capacity(memory_bytes=50, pids=1000)
        book = book_of(claim("a", 40), claim("b", 20, capacity=small))
        assert names(book.waiting) == ["b"]


class TestWhoIsCounted:
    def dead(self, name: str, **more: object) -> Claim:
        return msgspec.structs.replace(claim(name, 100), pid=2**22 + 1, **more)

    def test_a_dead_controller_is_not(self) -> None:
        assert not self.dead("a").is_held() and claim("a").is_held()

    def test_another_process_with_its_pid_is_not_it(self) -> None:
        assert not msgspec.structs.replace(claim("a"), start_time=1).is_held()

    @pytest.mark.parametrize("alive", [True, False])
    def test_once_there_is_a_supervisor_its_life_counts(self, tmp_path: Path, alive: bool) -> None:
        folder = ExecutionFolder(tmp_path, "20260102T030405678-9f86d081")
        folder.create()
        assert claim(folder.id, folder=str(folder.path)).is_held(), "there is no record yet"
        start = (linux.start_time(os.getpid()) or 0) + (not alive)
        supervisor = ProcessIdentity(pid=os.getpid(), start_time=start, boot_id=linux.boot_id())
        folder.write_record(ExecutionRecord(execution_id=folder.id, analysis="x", native_id=supervisor.native_id))
        assert self.dead(folder.id, folder=str(folder.path)).is_held() is alive
        living_controller = claim(folder.id, folder=str(folder.path))
        assert living_controller.is_held() is alive

    @pytest.mark.parametrize(("procs", "held"), [("17\n", True), ("", False)])
    def test_a_process_that_is_left_counts_and_an_empty_group_does_not(self, tmp_path: Path, procs: str, held: bool) -> None:
        (tmp_path / "cgroup.procs").write_text(procs)
        assert self.dead("a", group=str(tmp_path)).is_held() is held

    def test_dropping_makes_room(self) -> None:
        book = book_of(self.dead("dead"), claim("b", 100))
        assert names(book.waiting) == ["b"]
        assert names(book.drop_unheld(3.5)) == ["dead"] and book.checked_at == 3.5
        book.let_in()
        assert names(book.running) == ["b"]

    def test_a_dead_one_that_waits_stops_nobody(self) -> None:
        book = book_of(claim("a", 60), self.dead("dead"), claim("c", 10))
        assert names(book.waiting) == ["dead", "c"]
        book.drop_unheld(0.0)
        book.let_in()
        assert names(book.running) == ["a", "c"]


def _add_one(path: Path, number: int) -> None:
    with Ledger(path).changed() as book:
        book.add(claim(str(number), 1))


class TestLedger:
    def test_what_is_changed_is_there_for_the_next(self, tmp_path: Path) -> None:
        path = tmp_path / "a/b/x.claims"
        assert Ledger(path).read().claims == [] and not path.exists()
        for number in range(3):
            _add_one(path, number)
        book = Ledger(path).read()
        assert names(book.running) == ["0", "1", "2"] and [one.ticket for one in book.claims] == [0, 1, 2]
        assert path.stat().st_mode & 0o777 == 0o600

    def test_processes_at_once_lose_nothing(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        with context.Pool(4) as pool:
            pool.starmap(_add_one, [(tmp_path / "x", number) for number in range(60)])
        book = Ledger(tmp_path / "x").read()
        assert sorted(one.ticket for one in book.claims) == list(range(60))
        assert {one.execution_id for one in book.claims} == {str(number) for number in range(60)}

    def test_a_change_that_raises_changes_nothing(self, tmp_path: Path) -> None:
        _add_one(tmp_path / "x", 0)
        with pytest.raises(ZeroDivisionError), Ledger(tmp_path / "x").changed() as book:
            book.claims.clear()
            raise ZeroDivisionError
        assert names(Ledger(tmp_path / "x").read().claims) == ["0"]

    @pytest.mark.parametrize("at", ["its data", "its head"])
    def test_a_process_killed_while_it_writes_leaves_the_book_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
    ) -> None:
        path = tmp_path / "x"
        for number in range(3):
            _add_one(path, number)
        pwrite = os.pwrite

        def torn(fd: int, data: bytes, offset: int) -> int:
            if at == "its data":
                pwrite(fd, data[: len(data) // 2], offset)
                raise KeyboardInterrupt
            if offset == 0:
                raise KeyboardInterrupt
            return pwrite(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", torn)
        with pytest.raises(KeyboardInterrupt):
            _add_one(path, 3)
        monkeypatch.setattr(os, "pwrite", pwrite)
        assert names(Ledger(path).read().claims) == ["0", "1", "2"]
        _add_one(path, 4)
        assert names(Ledger(path).read().claims) == ["0", "1", "2", "4"]

    def test_nothing_outlives_a_boot(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _add_one(tmp_path / "x", 0)
        monkeypatch.setattr(admission, "_boot_id", lambda: "another")
        assert Ledger(tmp_path / "x").read().claims == []
        _add_one(tmp_path / "x", 1)
        assert names(Ledger(tmp_path / "x").read().claims) == ["1"]

    @pytest.mark.parametrize("content", [b"x", b"\x00\x03\x00\x00\x00", b"\x07\x03\x00\x00\x00abc", b"\x01\xff\xff\xff\xff"])
    def test_one_that_cannot_be_read_is_a_sentence_that_names_it(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(HostError, match=str(tmp_path / "x")) as caught:
            Ledger(tmp_path / "x").read()
        assert "Remove it" in caught.value.hint

    @pytest.mark.parametrize("place", ["file/x.claims", "folder"])
    def test_a_place_that_cannot_be_used_is_a_sentence(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
        with pytest.raises(HostError, match="cannot be used"):
            _add_one(tmp_path / place, 0)

    def test_a_link_in_its_place_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_bytes(b"")
        (tmp_path / "x").symlink_to(tmp_path / "precious")
        with pytest.raises(HostError):
            _add_one(tmp_path / "x", 0)
        assert (tmp_path / "precious").read_bytes() == b""

    def test_it_belongs_to_the_cgroup_parent(self, settings: Settings, tmp_path: Path) -> None:
        other = msgspec.structs.replace(settings, home=tmp_path / "another")
        if os.geteuid() == 0 or os.access(f"/run/user/{os.geteuid()}", os.W_OK):
            assert ledger_of(settings)._path == ledger_of(other)._path
        elsewhere = msgspec.structs.replace(settings, cgroup=msgspec.structs.replace(settings.cgroup, parent="a/b"))
        assert ledger_of(elsewhere)._path.name == "a,b.claims"


@pytest.fixture
def queue(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Admission:
    """Before a cgroup v2 parent whose files hold what is written to them; there is room for 100 MiB."""
    monkeypatch.setattr(admission, "ledger_of", lambda settings: Ledger(tmp_path / "x.claims"))
    (tmp_path / "p/executions").mkdir(parents=True)
    for name, content in (("memory.max", "max"), ("pids.max", "max"), ("cpu.max", "max 100000")):
        (tmp_path / "p/executions" / name).write_text(content)
    settings = msgspec.structs.replace(settings, capacity=Capacity(memory_bytes=100 * 2**20, pids=500))
    return Admission(settings, CgroupSite(version=2, mounts={"unified": str(tmp_path)}, parent="p"))


def enter(queue: Admission, name: str, memory_mib: int) -> str:
    return queue.enter(name, Limits(memory_bytes=memory_mib * 2**20), 0, Path("/nowhere"))


class TestAdmission:
    def test_the_kernel_holds_the_sum_before_anyone_is_let_in(self, queue: Admission, tmp_path: Path) -> None:
        assert enter(queue, "a", 60) == ""
        assert (tmp_path / "p/executions/memory.max").read_text() == str(100 * 2**20)

    def test_a_kernel_that_does_not_hold_it_lets_nobody_in(self, queue: Admission, tmp_path: Path) -> None:
        (tmp_path / "p/executions/pids.max").unlink()
        with pytest.raises(HostError, match="cannot be limited"):
            enter(queue, "a", 60)
        assert queue._ledger.read().claims == []

    def test_what_is_given_up_can_be_had(self, queue: Admission) -> None:
        assert enter(queue, "a", 60) == ""
        assert "60.0 MiB of 100.0 MiB are taken" in enter(queue, "b", 60)
        queue.leave("b")
        assert enter(queue, "c", 40) == ""
        queue.leave("a")
        queue.leave("a")
        assert enter(queue, "d", 60) == ""

    def test_what_can_never_fit(self, queue: Admission) -> None:
        queue.check(Limits(memory_bytes=100 * 2**20))
        with pytest.raises(SpecError, match="can never start"):
            queue.check(Limits(memory_bytes=100 * 2**20 + 1))

    def test_the_next_is_rung_for_and_does_not_wait_for_its_own_look(
        self, queue: Admission, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(admission, "_CHECK_EVERY_S", 3600.0)
        enter(queue, "a", 60)
        enter(queue, "b", 60)
        entered: list[bool] = []
        thread = threading.Thread(target=lambda: entered.append(queue.wait("b", None)))
        thread.start()
        wait_until("b's bell", lambda: "forge/admission/b" in Path("/proc/net/unix").read_text())
        queue.leave("a")
        thread.join(timeout=20)
        assert entered == [True]

    def test_a_cancel_ends_the_wait(self, queue: Admission) -> None:
        enter(queue, "a", 60)
        enter(queue, "b", 60)
        cancel = threading.Event()
        cancel.set()
        assert queue.wait("b", cancel) is False

    def test_one_who_waits_finds_the_dead_by_itself(self, queue: Admission, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever should ring was killed: its claim is found at the next look."""
        monkeypatch.setattr(admission, "_CHECK_EVERY_S", 0.0)
        if (pid := os.fork()) == 0:
            try:
                enter(queue, "a", 60)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        assert names(queue._ledger.read().running) == ["a"]
        with queue._ledger.changed() as book:
            book.add(msgspec.structs.replace(claim("b", 60 * 2**20), capacity=queue._capacity))
        assert queue.wait("b", None) is True
        assert names(queue._ledger.read().claims) == ["b"]

    def test_nobody_is_made_to_wait_for_the_dead(self, queue: Admission) -> None:
        if (pid := os.fork()) == 0:
            try:
                enter(queue, "a", 60)
                enter(queue, "also waits", 60)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert enter(queue, "b", 60) == ""

    def test_a_process_that_is_left_is_counted_on(self, queue: Admission, tmp_path: Path) -> None:
        enter(queue, "a", 60)
        group = tmp_path / "p/executions/a"
        group.mkdir()
        (group / "cgroup.procs").write_text("17\n")
        queue.leave("a")
        assert enter(queue, "b", 60) != ""
        (group / "cgroup.procs").write_text("")
        assert enter(queue, "c", 1) == ""
        assert names(queue._ledger.read().running) == ["b", "c"], "a is gone, and b was before c"

    def test_a_ledger_that_was_removed_while_one_waits(self, queue: Admission, tmp_path: Path) -> None:
        enter(queue, "a", 60)
        enter(queue, "b", 60)
        (tmp_path / "x.claims").unlink()
        with pytest.raises(BackendUnavailableError, match="b in the queue is gone"):
            queue.wait("b", None)

    def test_leaving_never_raises(self, queue: Admission, tmp_path: Path) -> None:
        """An execution that has ended has its record; a claim that could not be removed is dropped by whoever needs the room."""
        enter(queue, "a", 60)
        (tmp_path / "x.claims").unlink()
        (tmp_path / "x.claims").mkdir()
        queue.leave("a")

    def test_ringing_for_nobody_is_no_error(self) -> None:
        admission._ring("20260102T030405678-9f86d081")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
            bell.bind(admission._bell("x"))
            admission._ring("x")
            assert bell.recv(9) == b"1"
