"""The index as what all executions together are counted from: a row follows from its record, and nothing ever counts backwards."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.executions import rows, statistics
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import (
    CacheFacts,
    Enforced,
    ExecutionRecord,
    Isolation,
    Measured,
    RuntimeFacts,
    Usage,
    record_from_json,
)  # fmt: skip

# as the first schema was, word by word
FIRST_SCHEMA = """
CREATE TABLE executions (
    execution_id TEXT PRIMARY KEY, analysis TEXT NOT NULL, runtime TEXT, executor TEXT NOT NULL, status TEXT NOT NULL,
    end_reason TEXT, message TEXT NOT NULL, queued_at REAL NOT NULL, started_at REAL, ended_at REAL,
    peak_memory_bytes REAL, cpu_s REAL, dagster_run_id TEXT, controller_pid INTEGER, controller_start INTEGER);
CREATE INDEX executions_by_status ON executions (status);
CREATE INDEX executions_by_analysis ON executions (analysis, execution_id);
CREATE TABLE file_digests (
    device INTEGER, inode INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT NOT NULL,
    PRIMARY KEY (device, inode)) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
FOURTH_INDEXES = """
DROP INDEX executions_by_run;
DROP INDEX executions_by_status;
CREATE INDEX executions_by_status ON executions (status);
DROP INDEX executions_by_fingerprint;
CREATE INDEX executions_by_fingerprint ON executions (fingerprint) WHERE fingerprint IS NOT NULL;
PRAGMA user_version = 4;
"""


def measured(value: float) -> Measured:
    return Measured(value=value, source="x")


def record(number: int = 0, reason: EndReason | None = EndReason.COMPLETED, **changes: object) -> ExecutionRecord:
    """One that ended, with everything measured: half of the memory, a quarter of the processor time, all of the scratch."""
    made = ExecutionRecord(
        execution_id=f"20260102T0304{number:05}-9f86d081", analysis="a", executor="local", host="h", exit_code=0,
        status=reason.status if reason else Status.QUEUED, end_reason=reason, message="m",
        runtime=RuntimeFacts(name="r", kind="venv", content_digest="c", seal_digest="s", verified_at=0.0),
        usage=Usage(
            wall_s=measured(4.0), cpu_user_s=measured(1.5), cpu_system_s=measured(0.5), peak_memory_bytes=measured(50.0),
            peak_pids=measured(3), io_read_bytes=measured(5), io_write_bytes=measured(6), peak_scratch_bytes=measured(10),
        ),
        enforced={
            name: Enforced(value=value, source="x")
            for name, value in (("memory_bytes", 100.0), ("cpus", 2.0), ("pids", 9.0), ("scratch_bytes", 10.0))
        },
        isolation=Isolation(mode="own_uid", uid=5, protections={"network": "on", "precedence": "off: no", "identity": "off: x"}),
        queued_at=1000.0 + number, started_at=1001.0 + number, ended_at=1005.0 + number,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


@pytest.fixture
def store(tmp_path: Path):
    made = Store(tmp_path / "store.db")
    yield made
    made.close()


def test_a_row_follows_from_the_record_alone(store: Store) -> None:
    """So a lost store, made again by `forge gc` from what lies on the disk, holds the same."""
    made = record(
        suspect=True, attempt=2, dagster_run_id="d", partition="p", fingerprint="f", cache=CacheFacts(policy="use", reusable=True)
    )
    store.save(made)
    (row,) = statistics.rows(store, None, 0.0)
    assert row == rows.row_of(record_from_json(made.to_json()))
    assert row["protections_off"] == "identity precedence" and row["memory_limit_bytes"] == 100.0 and row["cpu_s"] == 2.0
    assert None not in row.values(), "an example that leaves a column empty proves nothing"


def without_fingerprints(db: sqlite3.Connection) -> None:
    """As the third schema was."""
    db.executescript(FOURTH_INDEXES)
    db.execute("DROP INDEX executions_by_fingerprint")
    db.execute("ALTER TABLE executions DROP COLUMN fingerprint")
    db.execute("PRAGMA user_version = 3")


def indexes(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    found = db.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name").fetchall()
    db.close()
    return [row[0] for row in found]


def test_an_index_of_the_fourth_schema_is_asked_in_the_same_way(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    store.save(record(fingerprint="f", dagster_run_id="d", cache=CacheFacts(policy="use", reusable=True)))
    store.close()
    wanted = indexes(tmp_path / "store.db")
    old = sqlite3.connect(tmp_path / "store.db")
    old.executescript(FOURTH_INDEXES)
    old.close()
    assert indexes(tmp_path / "store.db") != wanted
    store = Store(tmp_path / "store.db")
    assert indexes(tmp_path / "store.db") == wanted
    assert store.results("f") == store.executions_of_run("d") == [record().execution_id]
    store.close()


def test_an_index_of_the_third_schema_has_nothing_to_reuse(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    store.save(record())
    store.close()
    old = sqlite3.connect(tmp_path / "store.db")
    without_fingerprints(old)
    old.commit()
    old.close()
    store = Store(tmp_path / "store.db")
    assert store.results("f") == []
    store.save(record(1, fingerprint="f", cache=CacheFacts(policy="use", reusable=True)))
    assert store.results("f") == [record(1).execution_id]
    assert [row["execution_id"] for row in store.list()] == [record(1).execution_id, record().execution_id]
    store.close()


def test_an_index_of_the_second_schema_knows_no_partition(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    store.save(record())
    store.close()
    old = sqlite3.connect(tmp_path / "store.db")
    without_fingerprints(old)
    old.execute("DROP INDEX executions_by_partition")
    old.execute("ALTER TABLE executions DROP COLUMN partition")
    old.execute("PRAGMA user_version = 2")
    old.commit()
    old.close()
    store = Store(tmp_path / "store.db")
    store.save(record(1, partition="p"))
    found = {row["execution_id"]: row["partition"] for row in statistics.rows(store, None, 0.0)}
    assert found == {record().execution_id: None, record(1).execution_id: "p"}
    assert store.latest_success("a", None, "p") == record(1).execution_id
    store.save(record(2))
    assert store.latest_success("a", None, "p") == record(2).execution_id, "it has no partitions any more"
    store.forget(record(2).execution_id)
    assert store.latest_success("a", None, "q") == record().execution_id
    assert store.latest_success("a", None) == record().execution_id
    assert sqlite3.connect(tmp_path / "store.db").execute("PRAGMA user_version").fetchone() == (5,)
    store.close()


def test_what_never_ran_has_no_use_and_no_limit(store: Store) -> None:
    store.save(ExecutionRecord(execution_id=record().execution_id, analysis="a", status=Status.REFUSED))
    (row,) = statistics.rows(store, None, 0.0)
    assert {name for name, value in row.items() if value is None} >= {"wall_s", "memory_limit_bytes", "protections_off", "runtime"}
    for value in ("wall_s", "queue_s", "memory_use", "cpu_use", "scratch_use"):
        assert statistics.distribution(store, value, [1.0], ["analysis"]) == []


def test_how_executions_ended(store: Store) -> None:
    store.save(record(1))
    store.save(record(2, suspect=True))
    store.save(record(3, EndReason.MEMORY, runtime=None))
    store.save(record(4, None))
    assert set(statistics.ended(store)) == {
        ("a", "r", "local", "succeeded", "completed", 2, 1), ("a", "", "local", "failed", "memory", 1, 0),
    }  # fmt: skip
    assert statistics.ended(store, since=1008.0) == [("a", "", "local", "failed", "memory", 1, 0)]


def test_a_bucket_holds_its_own_bound_and_all_below(store: Store) -> None:
    for number, wall_s in enumerate((0.5, 1.0, 2.0, 7.0)):
        store.save(record(number, usage=Usage(wall_s=measured(wall_s)), runtime=None if wall_s == 7.0 else record().runtime))
    (without, one) = sorted(statistics.distribution(store, "wall_s", [1.0, 5.0], ["analysis", "runtime"]))
    assert without == (("a", ""), (0, 0), 1, 7.0)
    assert one == (("a", "r"), (2, 3), 3, 3.5)


@pytest.mark.parametrize(("value", "ratio"), [("memory_use", 0.5), ("cpu_use", 0.25), ("scratch_use", 1.0), ("queue_s", 1.0)])
def test_use_by_what_was_enforced(store: Store, value: statistics.Spread, ratio: float) -> None:
    store.save(record())
    assert statistics.distribution(store, value, [ratio, 5.0], ["analysis"]) == [(("a",), (1, 1), 1, ratio)]


def test_a_limit_of_nothing_is_no_division_by_zero(store: Store) -> None:
    store.save(record(enforced={"cpus": Enforced(value=0, source="x"), "memory_bytes": Enforced(value=0, source="x")}))
    assert statistics.distribution(store, "cpu_use", [1.0], ["analysis"]) == []
    assert statistics.distribution(store, "memory_use", [1.0], ["analysis"]) == []


class TestRemoved:
    def test_one_that_ended_is_gone_but_counted(self, store: Store) -> None:
        store.save(record(1, EndReason.MEMORY))
        store.save(record(2))
        before = statistics.ended(store), statistics.distribution(store, "wall_s", [9.0], ["analysis"])
        store.forget(record(1).execution_id)
        assert (statistics.ended(store), statistics.distribution(store, "wall_s", [9.0], ["analysis"])) == before
        assert store.ids() == {record(2).execution_id} and store.status(record(1).execution_id) is None
        assert [row["execution_id"] for row in store.list()] == [record(2).execution_id]
        assert statistics.last_failures(store, 5) == [] and len(statistics.rows(store, None, 0.0)) == 1
        assert b"m" not in [row[0] for row in store.read("SELECT message FROM executions WHERE removed = 1")]

    def test_one_that_never_ended_never_was(self, store: Store) -> None:
        store.save(record(1, None))
        store.forget(record(1).execution_id)
        assert store.read("SELECT * FROM executions") == []

    def test_one_that_comes_back_from_a_backup_is_counted_once(self, store: Store) -> None:
        store.save(record(1))
        store.forget(record(1).execution_id)
        store.save(record(1))
        assert store.ids() == {record(1).execution_id} and [one.number for one in statistics.ended(store)] == [1]


def test_the_first_names_are_the_first_for_ever(store: Store) -> None:
    for number, name in enumerate(("z", "y", "x", "z")):
        store.save(record(number, analysis=name))
    assert statistics.first_values(store, "analysis", 2) == ["z", "y"]
    store.forget(record(0).execution_id)
    assert statistics.first_values(store, "analysis", 2) == ["z", "y"]
    assert statistics.first_values(store, "runtime", 2) == ["r"]


def test_the_last_failures_are_the_newest_that_were_not_wanted(store: Store) -> None:
    for number, reason in enumerate(
        (EndReason.MEMORY, EndReason.COMPLETED, EndReason.CONTROLLER_LOST, EndReason.CANCELED, EndReason.RUNTIME_UNHEALTHY)
    ):
        store.save(record(number, reason, message=f"'{reason}'"))
    assert [(one.end_reason, one.message) for one in statistics.last_failures(store, 2)] == [
        ("runtime_unhealthy", "'runtime_unhealthy'"), ("controller_lost", "'controller_lost'"),
    ]  # fmt: skip
    assert len(statistics.last_failures(store, 9)) == 3


def test_protections_that_the_newest_did_without(store: Store) -> None:
    assert statistics.protections_off(store) == []
    store.save(record(1))
    store.save(record(2, isolation=None))
    assert statistics.protections_off(store) == ["identity", "precedence"]
    store.save(record(3, isolation=Isolation(mode="own_uid", uid=5, protections={"network": "on"})))
    assert statistics.protections_off(store) == []


def test_an_index_of_the_first_schema_is_filled_from_the_records(tmp_path: Path) -> None:
    ended, torn, running, gone = (record(number, message="old") for number in range(4))
    running = msgspec.structs.replace(running, status=Status.RUNNING, end_reason=None)
    old = sqlite3.connect(tmp_path / "store.db")
    old.executescript(FIRST_SCHEMA)
    for one in (ended, torn, running, gone):
        status = "queued" if one is running else "succeeded"
        old.execute(
            "INSERT INTO executions (execution_id, analysis, executor, status, message, queued_at, controller_pid, controller_start)"
            " VALUES (?, 'a', 'local', ?, 'old', 1000.0, 7, 8)",
            (one.execution_id, status),
        )
    old.commit()
    old.close()
    (tmp_path / "executions").mkdir()
    for one in (ended, torn, running):
        folder = ExecutionFolder(tmp_path / "executions", one.execution_id)
        folder.create()
        folder.write_record(one)
    ExecutionFolder(tmp_path / "executions", torn.execution_id).record_path.write_text("{")

    store = Store(tmp_path / "store.db")
    found = {str(row["execution_id"]): row for row in statistics.rows(store, None, 0.0)}
    assert found[ended.execution_id] == rows.row_of(ended)
    assert found[torn.execution_id]["wall_s"] is found[gone.execution_id]["wall_s"] is None
    assert found[running.execution_id]["status"] == "queued", "the index hears of begin and end alone"
    assert store.controller(ended.execution_id) == (7, 8)
    store.close()
    assert sqlite3.connect(tmp_path / "store.db").execute("PRAGMA user_version").fetchone() == (5,)
    again = Store(tmp_path / "store.db")
    assert len(again.ids()) == 4
    again.close()
