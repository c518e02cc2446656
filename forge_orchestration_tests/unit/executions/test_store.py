"""The store: several processes write at once, a newer one's file is left alone, and every fault is a sentence."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from forge_orchestration.errors import StoreError
from forge_orchestration.executions.store import Store
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord, Measured, RuntimeFacts, Usage


def record(number: int = 0, **changes: object) -> ExecutionRecord:
    made = ExecutionRecord(
        execution_id=f"20260102T0304{number:05}-9f86d081", analysis="a'; DROP TABLE executions; --", queued_at=0.5
    )
    return msgspec.structs.replace(made, **changes)


@pytest.fixture
def store(tmp_path: Path):
    made = Store(tmp_path / "store ö.db")
    yield made
    made.close()


def test_a_row_has_what_a_list_needs(store: Store) -> None:
    facts = RuntimeFacts(name="r", kind="venv", content_digest="c", seal_digest="s", verified_at=0.0)
    usage = Usage(
        cpu_user_s=Measured(value=1.5, source="x"), cpu_system_s=Measured(value=0.5, source="x"),
        peak_memory_bytes=Measured(value=7, source="x"),
    )  # fmt: skip
    store.save(
        record(
            status=Status.FAILED,
            end_reason=EndReason.MEMORY,
            message="m\n'",
            runtime=facts,
            usage=usage,
            started_at=1.0,
            ended_at=2.0,
        )
    )
    (row,) = store.list()
    assert row == {
        "execution_id": record().execution_id, "analysis": "a'; DROP TABLE executions; --", "runtime": "r", "executor": "local",
        "status": "failed", "end_reason": "memory", "message": "m\n'", "queued_at": 0.5, "started_at": 1.0, "ended_at": 2.0,
        "peak_memory_bytes": 7.0, "cpu_s": 2.0, "dagster_run_id": None, "partition": None,
    }  # fmt: skip


def test_saving_again_replaces_and_keeps_the_claim(store: Store) -> None:
    store.save(record())
    store.claim(record().execution_id, 123, 456)
    store.save(record(status=Status.RUNNING))
    assert [row["status"] for row in store.list()] == ["running"]
    assert store.controller(record().execution_id) == (123, 456)


def test_the_newest_first_and_filters(store: Store) -> None:
    for number in range(5):
        store.save(record(number, analysis="ab"[number % 2], status=Status.SUCCEEDED if number < 3 else Status.RUNNING))
    ids = [record(number).execution_id for number in range(5)]
    assert [row["execution_id"] for row in store.list()] == ids[::-1]
    assert [row["execution_id"] for row in store.list(limit=2)] == ids[:2:-1]
    assert [row["execution_id"] for row in store.list(analysis="b")] == [ids[3], ids[1]]
    assert [row["execution_id"] for row in store.list(analysis="a", status="succeeded")] == [ids[2], ids[0]]
    assert store.list(analysis="' OR 1=1 --") == []
    assert store.unfinished() == ids[3:]
    assert store.ids() == set(ids)


def test_the_latest_success_is_of_a_run_or_of_all_and_of_a_partition_or_of_none(store: Store) -> None:
    def ended(number: int, at: float, **changes: object) -> str:
        store.save(record(number, **{"analysis": "a", "status": Status.SUCCEEDED, "ended_at": at} | changes))
        return record(number).execution_id

    assert store.latest_success("a", None) is None
    unknown = ended(9, 0.0)
    store.save(record(9, analysis="a", status=Status.SUCCEEDED))  # when it ended is not known
    assert store.latest_success("a", None) == unknown
    of_run, latest, early = ended(0, 3.0, dagster_run_id="d"), ended(1, 5.0), ended(2, 4.0)
    ended(3, 9.0, status=Status.FAILED, dagster_run_id="d")
    ended(4, 9.0, analysis="b", dagster_run_id="d")
    of_part = ended(5, 8.0, partition="p", dagster_run_id="d")
    assert store.latest_success("a", None) == latest
    assert store.latest_success("a", "d") == of_run
    assert store.latest_success("a", "e") is None
    assert store.latest_success("a", "d", "p") == store.latest_success("a", None, "p") == of_part
    store.forget(of_part)
    assert store.latest_success("a", None, "p") == latest
    store.forget(latest)
    assert store.latest_success("a", None) == early


@pytest.mark.parametrize("status", Status)
def test_only_what_has_not_ended_is_unfinished(store: Store, status: Status) -> None:
    store.save(record(status=status))
    assert bool(store.unfinished()) is not status.is_final


def test_one_that_never_came_to_be_is_forgotten(store: Store) -> None:
    store.save(record())
    store.forget(record().execution_id)
    store.forget("nothing")
    assert store.list() == [] and store.controller(record().execution_id) is None


def test_digests_are_kept_by_what_a_stat_says(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("x")
    before = path.stat()
    assert store.digest(before) is None
    store.keep_digest(before, "digest")
    assert store.digest(path.stat()) == "digest"
    path.write_text("y")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.digest(path.stat()) is None
    store.keep_digest(path.stat(), "other")
    assert store.digest(path.stat()) == "other"


def test_inode_and_device_numbers_of_64_bits(store: Store) -> None:
    """Overlay and network file systems have them; SQLite's integers are signed."""
    facts = SimpleNamespace(st_dev=2**64 - 2, st_ino=2**64 - 1, st_size=2**62, st_mtime_ns=-1, st_ctime_ns=2**62)
    store.keep_digest(facts, "digest")
    assert store.digest(facts) == "digest"


def test_it_is_closed_to_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Store(tmp_path / "s.db").save(record())
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir() if path.stat().st_mode & 0o077] == []


def _write(path: Path, worker: int, count: int) -> None:
    store = Store(path)
    for number in range(count):
        one = record(worker * 1000 + number)
        store.save(one)
        store.claim(one.execution_id, worker, number)
        store.save(msgspec.structs.replace(one, status=Status.SUCCEEDED))
    store.close()


def test_several_processes_create_and_write_at_once(tmp_path: Path) -> None:
    path, context = tmp_path / "s.db", multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(path, number, 40)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 6
    store = Store(path)
    assert len(store.ids()) == 240 and store.unfinished() == []
    assert store.controller(record(5039).execution_id) == (5, 39)
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_several_threads_share_one(store: Store) -> None:
    threads = [threading.Thread(target=store.save, args=(record(number),)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.ids()) == 50


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db")
    store.save(record())
    writer = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert len(store.list()) == 1
    writer.execute("ROLLBACK")


class TestRefused:
    def test_a_newer_schema_is_left_untouched(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE marvels (x)")
        db.execute("PRAGMA user_version = 99")
        db.commit()
        db.close()
        with pytest.raises(StoreError, match="newer Forge"):
            Store(path)
        assert sqlite3.connect(path).execute("SELECT name FROM sqlite_master").fetchall() == [("marvels",)]

    @pytest.mark.parametrize(
        "content", [b"this is no database, but it is long enough to be taken for one" * 100, b"SQLite format 3\0" + b"\xff" * 200]
    )
    def test_a_file_that_is_no_database(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "s.db").write_bytes(content)
        with pytest.raises(StoreError, match=r"s\.db"):
            Store(tmp_path / "s.db")
        assert (tmp_path / "s.db").read_bytes() == content

    def test_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "s.db").mkdir()
        with pytest.raises(StoreError, match="cannot be opened"):
            Store(tmp_path / "s.db")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="cannot be opened"):
            Store(tmp_path / "nothing" / "s.db")

    def test_tables_that_are_not_ours(self, tmp_path: Path) -> None:
        db = sqlite3.connect(tmp_path / "s.db")
        db.execute("CREATE TABLE executions (x)")
        db.commit()
        db.close()
        with pytest.raises(StoreError):
            Store(tmp_path / "s.db")

    def test_a_closed_store(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "s.db")
        store.close()
        with pytest.raises(StoreError, match="cannot be written"):
            store.save(record())
        with pytest.raises(StoreError, match="cannot be read"):
            store.list()


def test_who_controls_what_is_unfinished_and_what_a_run_started(store: Store) -> None:
    running, done, other = record(1, dagster_run_id="r"), record(2, dagster_run_id="r"), record(3)
    for number, one in enumerate((running, done, other), 1):
        store.begin(one, number, 10 * number)
    store.save(msgspec.structs.replace(done, status=Status.SUCCEEDED))
    unclaimed = record(4)
    store.save(unclaimed)
    assert store.unfinished_controllers() == {
        running.execution_id: (1, 10), other.execution_id: (3, 30), unclaimed.execution_id: None,
    }  # fmt: skip
    assert store.controllers_of_run("r") == {(1, 10), (2, 20)} and store.controllers_of_run("s") == set()
    assert store.status(done.execution_id) == "succeeded" and store.status("none") is None
