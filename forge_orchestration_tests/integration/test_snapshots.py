"""Databases as inputs: what an analysis is given of one, and that it gets to nothing else of it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from forge_orchestration.analyses import load_definition, spec_from_definition
from forge_orchestration.engine import Engine
from forge_orchestration.errors import SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.snapshots import keep_snapshot
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.operations.reconcile import reconcile
from forge_orchestration.operations.replay import replay
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import Forge
from forge_orchestration_tests.integration.postgres_server import running_server

pytestmark = pytest.mark.together

COPY = """\
import os, shutil
shutil.copyfile(os.environ["FORGE_INPUTS"] + "/samples", os.environ["FORGE_OUTPUTS"] + "/seen")
"""
READ = """\
import os, sqlite3
database = sqlite3.connect("file:" + os.environ["FORGE_INPUTS"] + "/samples?mode=ro", uri=True)
with open(os.environ["FORGE_OUTPUTS"] + "/seen", "w") as file:
    print(database.execute("SELECT count(*), sum(value) FROM samples").fetchone(), file=file)
"""


class Place:
    """An analysis that reads a database, in a home of its own."""

    def __init__(self, forge: Forge, folder: Path) -> None:
        self.home, self.folder, self.database = forge.home, folder / "reads", folder / "data base.db"
        self.folder.mkdir()
        self.settings(f"sqlite:///{self.database}")
        with closing(sqlite3.connect(self.database)) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE samples (name TEXT, value REAL, lane INTEGER)")
            database.executemany("INSERT INTO samples VALUES (?, ?, ?)", [("a", 0.5, 1), ("b", None, 2), ("c", 2.0, None)])
            database.commit()

    def settings(self, url: str, more: str = "snapshots = true") -> None:
        (self.home / "settings.toml").write_text(f'[databases.lims]\nurl = "{url}"\n{more}\n')

    def write(self, script: str, query: str | None) -> None:
        (self.folder / "read.py").write_text(script)
        asked = f", query: {json.dumps(query)}" if query is not None else ""
        (self.folder / "analysis.yaml").write_text(
            f"command: [python, read.py]\ninputs: {{samples: {{database: lims{asked}}}}}\noutputs: {{seen: seen}}\nlimits: {{memory: 256MiB}}\n"
        )

    @property
    def engine(self) -> Engine:
        return Engine(load_settings(self.home))

    def run(self, **changes: object) -> ExecutionRecord:
        settings = load_settings(self.home)
        return self.engine.run(spec_from_definition(load_definition(str(self.folder), settings), settings, **changes))

    def change(self, sql: str) -> None:
        with closing(sqlite3.connect(self.database)) as database:
            database.execute(sql)
            database.commit()


@pytest.fixture
def place(other_forge: Forge, tmp_path: Path) -> Place:
    return Place(other_forge, tmp_path)


def seen(record: ExecutionRecord) -> Path:
    assert record.succeeded, record.message
    return Path(record.folder, "outputs", "seen")


def test_all_of_an_sqlite_database(place: Place) -> None:
    place.write(READ, None)
    before = time.time()
    first = place.run()
    assert seen(first).read_text() == "(3, 2.5)\n"
    (facts,) = first.inputs
    assert (
        facts.source == f"snapshot://lims#sha256={facts.sha256}"
        and facts.taken_at is not None
        and before <= facts.taken_at < first.started_at
    )
    assert place.run().cache.hit, "it is the very same, though it was taken anew"
    place.change("INSERT INTO samples VALUES ('d', 4, 4)")
    second = place.run()
    assert not second.cache.hit and seen(second).read_text() == "(4, 6.5)\n"


def test_what_a_query_finds(place: Place) -> None:
    place.write(COPY, 'SELECT name, value, lane FROM samples WHERE name <> "z:y" ORDER BY name')
    found = pd.read_parquet(seen(place.run()))
    assert found["name"].tolist() == ["a", "b", "c"] and found["value"].isna().tolist() == [False, True, False]
    assert found["lane"].dropna().tolist() == [1, 2] and place.run().cache.hit
    place.change("INSERT INTO samples VALUES ('d', 4, 4)")
    assert len(pd.read_parquet(seen(place.run()))) == 4


def test_is_of_one_moment_while_others_write(place: Place) -> None:
    place.write(READ, None)
    place.change("CREATE TABLE pairs (value INTEGER)")
    stop = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(place.database, timeout=30, isolation_level=None)) as database:
            while not stop.is_set():
                database.execute("BEGIN IMMEDIATE")
                database.execute("INSERT INTO samples VALUES ('x', 1, 1)")
                database.execute("INSERT INTO samples VALUES ('y', -1, 1)")
                database.execute("COMMIT")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        told = {seen(place.run()).read_text() for _ in range(3)}
    finally:
        stop.set()
        writer.join()
    assert len(told) == 3, "each is another state"
    for count, total in (text.strip("()\n").split(", ") for text in told):
        assert total == "2.5" and int(count) % 2 == 1, "none shows half of a transaction"


def test_postgresql(place: Place) -> None:
    with running_server() as server:
        server.ask(
            "CREATE TABLE samples AS SELECT i AS id, i / 2.0::float AS value, 'n' || i AS name FROM generate_series(1, 50000) i"
        )
        place.settings(server.url)
        place.write(COPY, "SELECT id, value, name FROM samples ORDER BY id")
        found = pd.read_parquet(seen(place.run()))
        assert len(found) == 50_000 and found["id"].iloc[-1] == 50_000 and found["name"].iloc[6] == "n7"
        assert place.run().cache.hit
        for query in ("DELETE FROM samples RETURNING id", "WITH gone AS (DELETE FROM samples RETURNING id) SELECT id FROM gone"):
            place.write(COPY, query)
            with pytest.raises(SpecError, match="cannot be taken"):
                place.run()
        place.write(COPY, "SELECT nextval('one')")
        server.ask("CREATE SEQUENCE one")
        with pytest.raises(SpecError, match="in a read-only transaction"):
            place.run()
        place.write(COPY, "SELECT id, name FROM samples WHERE name LIKE 'n1%' AND id::text <> '7' ORDER BY 1")
        assert pd.read_parquet(seen(place.run()))["name"].iloc[0] == "n1"
        assert server.ask("SELECT count(*) FROM samples") == "50000"
        place.write(COPY, None)
        with pytest.raises(SpecError, match="would be all of a database that is no SQLite file"):
            place.run()


@pytest.mark.parametrize(("query", "said"), [
    ("SELECT nowhere FROM samples", "no such column: nowhere"),
    ("DELETE FROM samples RETURNING name", "attempt to write a readonly database"),
    ("SELECT 1; SELECT 2", "cannot be taken"),
    ("CREATE TABLE more (x)", "cannot be taken"),
])  # fmt: skip
def test_a_query_that_is_wrong(place: Place, query: str, said: str) -> None:
    place.write(COPY, query)
    with pytest.raises(SpecError, match=said):
        place.run()
    with closing(sqlite3.connect(place.database)) as database:
        assert database.execute("SELECT count(*) FROM samples").fetchone() == (3,)
    assert os.listdir(place.home / "cache" / "snapshots") == [] and os.listdir(place.home / "executions") == []


def test_only_what_the_deployment_allows(place: Place) -> None:
    place.write(READ, None)
    place.settings(f"sqlite:///{place.database}", "")
    with pytest.raises(SpecError, match="of a database that analyses are given no snapshots of"):
        place.run()
    place.settings(f"sqlite:///{place.database}", "snapshots = true\nmax = '4KiB'")
    with pytest.raises(SpecError, match=r"has more than 4.0 KiB"):
        place.run()
    assert os.listdir(place.home / "cache" / "snapshots") == []


def test_an_execution_is_done_again_with_what_it_had_read(place: Place) -> None:
    place.write(READ, None)
    first = place.run()
    place.change("DELETE FROM samples")
    found = replay(place.engine, first)
    assert found.verdict == "identical"
    shutil.rmtree(place.home / "cache" / "snapshots")
    with pytest.raises(SpecError, match="is not kept any more"):
        replay(place.engine, first)


def test_is_kept_as_long_as_an_execution_has_it(place: Place) -> None:
    place.write(READ, None)
    first = place.run()
    kept = place.home / "cache" / "snapshots" / first.inputs[0].sha256
    long_ago = time.time() - 86_400
    assert kept.stat().st_nlink == 2
    reconcile(place.engine)
    assert kept.exists()
    shutil.rmtree(first.folder)
    reconcile(place.engine)
    assert kept.exists(), "it may just be going to be read"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forge_orchestration.executions.snapshots._UNUSED_S", time.time() - long_ago - 86_400 - 3600)
        report = reconcile(place.engine)
    assert not kept.exists() and report.removed == [f"snapshot {first.inputs[0].sha256[:12]}, which no execution has"]


def test_that_is_taken_again_while_it_waits_is_the_one_that_is_kept(place: Place) -> None:
    place.write(READ, None)
    first = place.run()
    folder = ExecutionFolder(place.home / "executions", first.execution_id)
    place.change("DELETE FROM samples WHERE name = 'a'")
    second = place.run()
    kept = place.home / "cache" / "snapshots" / second.inputs[0].sha256
    keep_snapshot("samples", kept, folder)
    assert os.path.samefile(folder.path / "snapshots" / "samples", kept)
    assert (place.home / "cache" / "snapshots" / first.inputs[0].sha256).stat().st_nlink == 1


def test_one_that_somebody_has_changed_is_not_read(place: Place) -> None:
    place.write(READ, None)
    first = place.run()
    kept = place.home / "cache" / "snapshots" / first.inputs[0].sha256
    kept.write_bytes(kept.read_bytes().replace(b"samples", b"sampled"))
    spec = spec_from_definition(load_definition(str(place.folder), load_settings(place.home)), load_settings(place.home))
    again = msgspec.structs.replace(spec, inputs={"samples": first.inputs[0].source})
    with pytest.raises(SpecError, match="which somebody has changed"):
        place.engine.run(again)
