"""Dagster's events in databases that stay open: the same files as Dagster's own storage, whatever happens to them meanwhile."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData, StepMaterializationData
from dagster._core.storage.event_log import SqliteEventLogStorage

from forge_orchestration.orchestration.sqlite_storage import _KEPT_OPEN, OpenEventLogStorage
from forge_orchestration_tests.conftest import wait_until

RUN = "a-run"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenEventLogStorage]:
    with dg.DagsterInstance.ephemeral() as instance:
        storage = OpenEventLogStorage(str(tmp_path))
        storage.register_instance(instance)
        yield storage
        storage.dispose()


@pytest.fixture
def dagsters(tmp_path: Path, opened: OpenEventLogStorage) -> Iterator[SqliteEventLogStorage]:
    storage = SqliteEventLogStorage(str(tmp_path))
    storage.register_instance(opened._instance)
    yield storage
    storage.dispose()


def event(message: str, run_id: str = RUN) -> dg.EventLogEntry:
    told = dg.DagsterEvent(event_type_value="ENGINE_EVENT", job_name="job", message=message, event_specific_data=EngineEventData())
    return dg.EventLogEntry(
        error_info=None, level=10, user_message=message, run_id=run_id, timestamp=1.0, job_name="job", dagster_event=told
    )


def materialized(asset: str, run_id: str = RUN) -> dg.EventLogEntry:
    data = dg.DagsterEvent(
        event_type_value="ASSET_MATERIALIZATION", job_name="job", step_key="step",
        event_specific_data=StepMaterializationData(dg.AssetMaterialization(asset)),
    )  # fmt: skip
    return dg.EventLogEntry(
        error_info=None, level=10, user_message="", run_id=run_id, timestamp=1.0, job_name="job", dagster_event=data
    )


def said(storage: SqliteEventLogStorage, run_id: str = RUN) -> list[str]:
    return [entry.user_message for entry in storage.get_logs_for_run(run_id)]


def test_each_reads_what_the_other_writes(opened: OpenEventLogStorage, dagsters: SqliteEventLogStorage) -> None:
    for number in range(6):
        (opened, dagsters)[number % 2].store_event(event(str(number)))
        assert said(opened) == said(dagsters) == [str(n) for n in range(number + 1)]


def test_what_is_materialized_is_seen_by_both(opened: OpenEventLogStorage, dagsters: SqliteEventLogStorage) -> None:
    opened.store_event(materialized("ours"))
    dagsters.store_event(materialized("theirs"))
    for storage in (opened, dagsters):
        assert {key.path[0] for key in storage.all_asset_keys()} == {"ours", "theirs"}


def test_a_database_is_that_of_dagsters_migrations(
    opened: OpenEventLogStorage, dagsters: SqliteEventLogStorage, tmp_path: Path
) -> None:
    """Also one that is copied from the template, which the first run's becomes."""
    opened.store_event(event("first", "first"))
    opened.store_event(event("second", "second"))
    dagsters.store_event(event("third", "third"))
    schemas, revisions = set(), set()
    for run_id in ("first", "second", "third"):
        with sqlite3.connect(tmp_path / f"{run_id}.db") as database:
            rows = database.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
            schemas.add(str(rows))
            revisions |= set(database.execute("SELECT version_num FROM alembic_version"))
            assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert said(dagsters, run_id) == [run_id]
    assert len(schemas) == len(revisions) == 1
    assert set(opened.get_all_run_ids()) == {"first", "second", "third"}, "the template is no run"


def test_only_so_many_stay_open(opened: OpenEventLogStorage, tmp_path: Path) -> None:
    for number in range(3 * _KEPT_OPEN):
        opened.store_event(event("x", f"run-{number}"))
    mine = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.exists()]
    assert 0 < len({name for name in mine if name.startswith(str(tmp_path)) and name.endswith(".db")}) <= _KEPT_OPEN
    assert said(opened, "run-0") == ["x"]


def test_databases_that_are_removed_or_replaced_are_opened_anew(
    opened: OpenEventLogStorage, dagsters: SqliteEventLogStorage, tmp_path: Path
) -> None:
    opened.store_event(event("before"))
    dagsters.wipe()
    opened.store_event(event("after a wipe"))
    assert said(opened) == said(dagsters) == ["after a wipe"]
    shutil.copy(tmp_path / f"{RUN}.db", tmp_path / "copy")
    for path in tmp_path.glob(f"{RUN}.db*"):
        path.unlink()
    (tmp_path / "copy").rename(tmp_path / f"{RUN}.db")
    opened.store_event(event("after a restore"))
    assert said(opened)[-1] == said(dagsters)[-1] == "after a restore"


def test_who_watches_a_run_is_told_at_once(opened: OpenEventLogStorage, tmp_path: Path) -> None:
    """The watcher of the UI waits for the file itself to change; here it is another process' storage that writes."""
    opened.store_event(event("first"))
    heard: list[str] = []
    opened.watch(RUN, None, lambda entry, _cursor: heard.append(entry.user_message))
    program = f"""if True:
        from forge_orchestration_tests.integration.test_sqlite_storage import OpenEventLogStorage, event
        storage = OpenEventLogStorage({str(tmp_path)!r})
        for number in range(3):
            storage.store_event(event(f"live {{number}}"))
            input()
        """
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        for number in range(3):
            wait_until("the event", lambda number=number: f"live {number}" in heard)  # type: ignore[misc]
            writer.stdin.write("\n")
            writer.stdin.flush()
    assert writer.returncode == 0


@pytest.mark.parametrize("turn", range(3))
def test_threads_and_processes_write_at_once(opened: OpenEventLogStorage, tmp_path: Path, turn: int) -> None:
    """From nothing: all of them find no database, and make it."""
    program = f"""if True:
        from forge_orchestration_tests.integration.test_sqlite_storage import OpenEventLogStorage, event
        storage = OpenEventLogStorage({str(tmp_path)!r})
        for number in range(40):
            storage.store_event(event("from a process", "run-{turn}"))
        """
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]

    def write() -> None:
        for _ in range(40):
            opened.store_event(event("from a thread", f"run-{turn}"))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]
    found = said(opened, f"run-{turn}")
    assert (found.count("from a thread"), found.count("from a process")) == (160, 80)


def test_a_process_that_forks_has_connections_of_its_own(opened: OpenEventLogStorage) -> None:
    opened.store_event(event("before"))
    if (pid := os.fork()) == 0:
        opened.store_event(event("child"))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    opened.store_event(event("parent"))
    assert said(opened) == ["before", "child", "parent"]
