"""Results reach their database once each, whole or not at all, whatever happens meanwhile; and no other than the deployment allows."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest

import forge_orchestration
from forge_orchestration.analyses import load_definition, spec_from_definition
from forge_orchestration.engine import Engine
from forge_orchestration.errors import SpecError
from forge_orchestration.executions.publication import marked
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.operations.reconcile import reconcile
from forge_orchestration.operations.retention import Rules, removable
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import Forge, wait_until
from forge_orchestration_tests.integration.dagster_support import Deployment
from forge_orchestration_tests.integration.postgres_server import Server, running_server

pytestmark = pytest.mark.together

SCRIPT = """\
import os
from pathlib import Path
outputs = Path(os.environ["FORGE_OUTPUTS"])
(outputs / "scores.csv").write_bytes(Path(os.environ["FORGE_INPUTS"], "table").read_bytes())
(outputs / "report.txt").write_text("all is well")
"""
DEFINITION = """\
command: [python, scores.py]
inputs: {table: {path: table.csv}}
outputs: {scores: scores.csv, report: report.txt}
publish:
  scores:
    output: scores
    table: results.model_scores
    columns:
      model: {type: str, choices: [tree, linear]}
      fold: {type: int, min: 0}
      auc: {type: float, min: 0, max: 1, "null": true}
      best: {type: bool}
      at: {type: time}
    unique: [model, fold]
limits: {memory: 256MiB}
"""
HEADER = "model,fold,auc,best,at\n"
ROWS = "tree,0,0.75,true,2026-01-02T03:04:05Z\ntree,1,,false,2026-01-02\nlinear,0,1,0,2026-01-02T03:04:05.5+01:00\n"
LOADED = [("tree", 0, 0.75, True), ("tree", 1, None, False), ("linear", 0, 1.0, False)]
MISFITS = {
    "tree,0,1.5,true,2026-01-02\n": "column 'auc' of row 1 is '1.5', and must be at most 1",
    "tree,0,0.5,true,2026-01-02\nforest,0,0.5,true,2026-01-02\n": "column 'model' of row 2 is 'forest', and must be one of tree, linear",
    "tree,zero,0.5,true,2026-01-02\n": "column 'fold' of row 1 is 'zero', and must be of type int",
    "tree,0,0.5,perhaps,2026-01-02\n": "column 'best' of row 1 is 'perhaps', and must be of type bool",
    "tree,0,0.5,true,yesterday\n": "column 'at' of row 1 is 'yesterday', and must be of type time",
    "tree,0,0.5,,2026-01-02\n": "column 'best' of row 1 is empty",
    "tree,0,0.5,true,2026-01-02\ntree,0,0.6,true,2026-01-02\n": "row 2 is the second with the same values of its unique columns",
    "tree,0,0.5,true,2026-01-02,more\n": "cannot be read as a table: its rows have more fields than its first line",
}


class Place:
    """An analysis whose result goes to a database, in a home of its own."""

    def __init__(self, forge: Forge, folder: Path, url: str, ask: Callable[[str], list[tuple[Any, ...]]]) -> None:
        self.forge, self.home, self.url, self.ask = forge, forge.home, url, ask
        self.published = folder / "published"
        self.published.mkdir()
        self.folder = folder / "scores"
        self.folder.mkdir()
        (self.folder / "scores.py").write_text(SCRIPT)
        (self.folder / "analysis.yaml").write_text(DEFINITION)
        self.settings("")
        self.write(HEADER + ROWS)

    def settings(self, more: str) -> None:
        (self.home / "settings.toml").write_text(
            f'[databases.results]\nurl = "{self.url}"\ntables = ["model_*"]\n[publication]\nfolders = {{site = "{self.published}"}}\n{more}'
        )

    def write(self, table: str) -> None:
        (self.folder / "table.csv").write_text(table)

    def edit(self, old: str, new: str) -> None:
        text = (self.folder / "analysis.yaml").read_text()
        assert old in text
        (self.folder / "analysis.yaml").write_text(text.replace(old, new))

    def run(self, **more: object) -> ExecutionRecord:
        """In this process, which has loaded what it takes."""
        settings = load_settings(self.home)
        return Engine(settings).run(spec_from_definition(load_definition(str(self.folder), settings), settings, **more))

    def rows(self) -> list[tuple[Any, ...]]:
        return self.ask("SELECT execution_id, model, fold, auc, best FROM model_scores ORDER BY execution_id, model DESC, fold")

    def count(self) -> int:
        return len(self.ask("SELECT 1 FROM model_scores")) if self.has("model_scores") else 0

    def has(self, table: str) -> bool:
        catalog = "sqlite_master" if self.url.startswith("sqlite") else "pg_tables"
        column = "name" if self.url.startswith("sqlite") else "tablename"
        return bool(self.ask(f"SELECT 1 FROM {catalog} WHERE {column} = '{table}'"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as made:
        yield made


@pytest.fixture
def sqlite_place(other_forge: Forge, tmp_path: Path) -> Place:
    path = tmp_path / "results.db"

    def ask(sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(path, timeout=30)) as database:
            found = database.execute(sql).fetchall()
            database.commit()
        return found

    return Place(other_forge, tmp_path, f"sqlite:///{path}", ask)


@pytest.fixture
def postgres_place(other_forge: Forge, tmp_path: Path, server: Server) -> Iterator[Place]:
    import psycopg2

    def ask(sql: str) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(server.url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    place = Place(other_forge, tmp_path, server.url, ask)
    yield place
    place.ask("DROP TABLE IF EXISTS model_scores, forge_publications")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue("sqlite_place" if request.param == "sqlite" else "postgres_place")
    return found


class TestATable:
    def test_gets_the_rows_and_the_record_says_so(self, place: Place) -> None:
        record = place.run()
        assert record.succeeded and not record.unpublished
        (published,) = record.published
        assert (published.name, published.target, published.rows) == ("scores", "results.model_scores", 3)
        assert published.execution_id == record.execution_id and published.at is not None and published.at >= record.ended_at
        assert published.sha256 == next(one.sha256 for one in record.outputs if one.name == "scores")
        assert place.rows() == [(record.execution_id, *row) for row in LOADED]
        shown = place.forge("executions", "show", "last")
        assert "results.model_scores (3 rows)" in shown.stdout and marked(load_settings(place.home)) == []

    def test_has_each_result_once(self, place: Place) -> None:
        first, second = place.run(), place.run()
        assert second.cache.hit and second.published[0].execution_id == first.execution_id and second.published[0].rows == 3
        assert place.count() == 3
        assert place.forge("publish", first.execution_id).returncode == 0 and place.count() == 3
        again = place.run(cache="refresh")
        assert not again.cache.hit and {row[0] for row in place.rows()} == {first.execution_id, again.execution_id}
        replayed = place.forge("replay", first.execution_id)
        assert replayed.returncode == 0 and place.count() == 6, "a replay publishes nothing"

    @pytest.mark.parametrize("rows", MISFITS)
    def test_keeps_out_what_does_not_fit(self, sqlite_place: Place, rows: str) -> None:
        sqlite_place.write(HEADER + rows)
        record = sqlite_place.run()
        assert record.succeeded and MISFITS[rows] in record.unpublished[0].error and record.unpublished[0].rows is None
        assert sqlite_place.count() == 0 and not sqlite_place.has("model_scores"), "not half of it"

    def test_gets_what_fits_after_all_without_computing_it_again(self, place: Place) -> None:
        place.write(HEADER + "tree,0,1.5,true,2026-01-02\n")
        assert place.run().unpublished
        place.edit("max: 1,", "max: 2,")
        second = place.run()
        assert second.cache.hit and second.published[0].rows == 1 and place.count() == 1

    def test_keeps_nothing_of_a_file_whose_end_does_not_fit(self, postgres_place: Place) -> None:
        rows = "".join(f"tree,{number},0.5,true,2026-01-02\n" for number in range(45_000))
        postgres_place.write(HEADER + rows + "tree,45000,7,true,2026-01-02\n")
        assert "of row 45001 is '7.0'" in postgres_place.run().unpublished[0].error and postgres_place.count() == 0
        postgres_place.write(HEADER + rows + "tree,3,0.5,true,2026-01-02\n")
        assert "two rows with model tree, fold 3" in postgres_place.run().unpublished[0].error and postgres_place.count() == 0
        postgres_place.write(HEADER + rows)
        assert postgres_place.run().published[0].rows == postgres_place.count() == 45_000

    def test_that_somebody_has_changed_gets_nothing(self, place: Place) -> None:
        place.run()
        place.ask("ALTER TABLE model_scores RENAME COLUMN auc TO area")
        assert "Table 'model_scores' of database 'results' has no column 'auc'." in place.run(cache="refresh").unpublished[0].error
        place.ask("ALTER TABLE model_scores RENAME COLUMN area TO auc")
        place.ask("ALTER TABLE model_scores ADD COLUMN extra TEXT")
        assert place.run().published[0].rows == 3, "what may be empty is nobody's concern"
        place.ask("DROP TABLE model_scores")
        place.ask("CREATE TABLE model_scores (execution_id TEXT, model TEXT, fold TEXT, auc FLOAT, best BOOLEAN, at TIMESTAMP)")
        assert "'fold' of type TEXT, and what is published is of type int" in place.run(cache="refresh").unpublished[0].error
        assert place.count() == 0

    @pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
    def test_in_other_endings(self, sqlite_place: Place, ending: str) -> None:
        rows = {
            "model": ["tree", "tree"],
            "fold": [0, 1],
            "auc": [None, 0.5],
            "best": [True, False],
            "at": ["2026-01-02", "2026-01-03"],
        }
        frame = pd.DataFrame(rows)
        path = sqlite_place.folder / "table.csv"
        if ending == "tsv":
            frame.to_csv(path, sep="\t", index=False)
        elif ending == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.assign(at=pd.to_datetime(frame["at"])).to_parquet(path)
        for name in ("analysis.yaml", "scores.py"):
            text = (sqlite_place.folder / name).read_text()
            (sqlite_place.folder / name).write_text(text.replace("scores.csv", f"scores.{ending}"))
        record = sqlite_place.run()
        assert not record.unpublished and sqlite_place.rows() == [
            (record.execution_id, "tree", 0, None, True), (record.execution_id, "tree", 1, 0.5, False),
        ]  # fmt: skip

    @pytest.mark.parametrize(("ending", "content"), [
        ("csv", b"\x00\xff\xfe" * 50), ("csv", b'model,fold,auc,best,at\n"' + b"x" * 2000), ("jsonl", b"[[[[" * 2000), ("jsonl", b"7\n"),
        ("parquet", b"PAR1" + b"\xff" * 200 + b"PAR1"), ("tsv", b"\n\n\n"),
    ])  # fmt: skip
    def test_hostile_files_are_a_sentence(self, sqlite_place: Place, ending: str, content: bytes) -> None:
        (sqlite_place.folder / "table.csv").write_bytes(content)
        for name in ("analysis.yaml", "scores.py"):
            text = (sqlite_place.folder / name).read_text()
            (sqlite_place.folder / name).write_text(text.replace("scores.csv", f"scores.{ending}"))
        record = sqlite_place.run()
        (said,) = record.unpublished
        assert (
            record.succeeded
            and said.error
            and said.error.isprintable()
            and not said.transient
            and not sqlite_place.has("model_scores")
        )

    def test_is_no_larger_than_the_deployment_allows(self, sqlite_place: Place) -> None:
        sqlite_place.settings("max_rows = 2\n")
        assert "has more than 2 rows" in sqlite_place.run().unpublished[0].error
        sqlite_place.settings("max = '50B'\n")
        assert "and a table takes 50 B at most" in sqlite_place.run().unpublished[0].error
        assert not sqlite_place.has("model_scores")
        sqlite_place.settings("max_rows = 3\n")
        assert sqlite_place.run().published[0].rows == 3

    def test_whose_url_is_in_the_environment(self, sqlite_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RESULTS_URL", sqlite_place.url)
        (sqlite_place.home / "settings.toml").write_text('[databases.results]\nurl = "env:RESULTS_URL"\ntables = ["model_*"]\n')
        assert sqlite_place.run().published[0].rows == 3
        monkeypatch.delenv("RESULTS_URL")
        assert "The environment variable RESULTS_URL is not set" in sqlite_place.run(cache="refresh").unpublished[0].error


class TestRefusedBeforeAnythingStarts:
    @pytest.mark.parametrize(("old", "new", "said"), [
        ("results.model_scores", "elsewhere.model_scores", "goes to the database 'elsewhere', which this deployment does not have. Its databases: results"),
        ("results.model_scores", "results.patients", "goes to table 'patients' of database 'results', to which nothing may be added"),
        ("results.model_scores", "results.forge_publications", "has the table 'results.forge_publications'"),
        ("output: scores", "output: score", "is of output 'score', which is not declared. Declared: scores, report"),
        ("    table: results", "    path: site/x\n    table: results", "needs a table or a path, and not both"),
        ("      model:", "      execution_id:", "'execution_id' cannot be a column"),
        ("unique: [model, fold]", "unique: [model, run]", "has the unique column 'run', which is not declared"),
        ("min: 0, max: 1", "min: 1, max: 0", "has a min above its max"),
        ("choices: [tree, linear]", "choices: [1]", "has choices that are not of type str"),
        ("scores: scores.csv", "scores: '*.csv'", "which may be several files"),
        ("scores: scores.csv", "scores: scores.png", "is of scores.png, which is no table"),
        ("type: bool", "type: boolean", "Invalid enum value 'boolean'"),
    ])  # fmt: skip
    def test_what_is_not_allowed(self, sqlite_place: Place, old: str, new: str, said: str) -> None:
        sqlite_place.edit(old, new)
        with pytest.raises(SpecError, match=re.escape(said)):
            sqlite_place.run()
        assert sqlite_place.forge.executions() == set() and not sqlite_place.has("model_scores")

    @pytest.mark.parametrize("path", ["elsewhere/x", "site/../x", "site/", "/etc/x", "site/{name}", "site/a//b", "site/."])
    def test_a_path_that_leads_elsewhere(self, sqlite_place: Place, path: str) -> None:
        text = (sqlite_place.folder / "analysis.yaml").read_text()
        (sqlite_place.folder / "analysis.yaml").write_text(
            re.sub("publish:.*(?=limits)", f"publish: {{r: {{output: report, path: '{path}'}}}}\n", text, flags=re.S)
        )
        done = sqlite_place.forge("run", str(sqlite_place.folder))
        assert done.returncode == 2 and ("has the path" in done.stderr or "goes to the folder 'elsewhere'" in done.stderr), (
            done.stderr
        )


class TestAFile:
    def use(self, place: Place, path: str) -> None:
        text = (place.folder / "analysis.yaml").read_text()
        (place.folder / "analysis.yaml").write_text(
            re.sub("publish:.*(?=limits)", f"publish: {{report: {{output: report, path: '{path}'}}}}\n", text, flags=re.S)
        )

    def test_is_put_in_its_place_whole(self, sqlite_place: Place) -> None:
        self.use(sqlite_place, "site/reports/latest.txt")
        record = sqlite_place.run()
        target = sqlite_place.published / "reports" / "latest.txt"
        assert target.read_text() == "all is well" and record.published[0].rows is None
        assert os.listdir(target.parent) == ["latest.txt"]
        assert os.stat(target).st_ino != os.stat(Path(record.folder, "outputs", "report.txt")).st_ino, (
            "nobody edits what was collected"
        )

    def test_of_each_execution(self, sqlite_place: Place) -> None:
        self.use(sqlite_place, "site/{execution_id}/report.txt")
        records = [sqlite_place.run(), sqlite_place.run(cache="refresh"), sqlite_place.run()]
        assert sorted(os.listdir(sqlite_place.published)) == [one.execution_id for one in records[:2]]

    def test_does_not_leave_the_folder_through_a_link(self, sqlite_place: Place, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        (sqlite_place.published / "reports").symlink_to(tmp_path / "outside")
        self.use(sqlite_place, "site/reports/latest.txt")
        assert "leads out of the folder" in sqlite_place.run().unpublished[0].error
        assert os.listdir(tmp_path / "outside") == []


class TestADatabaseThatIsAway:
    def test_is_tried_again(self, postgres_place: Place, server: Server) -> None:
        postgres_place.run()
        server.stop()

        def come_back() -> None:
            wait_until(
                "a success",
                lambda: (
                    sum('"succeeded"' in path.read_text() for path in postgres_place.home.glob("executions/*/record.json")) == 2
                ),
            )
            time.sleep(1.5)
            server.start()

        comes_back = threading.Thread(target=come_back)
        comes_back.start()
        try:
            record = postgres_place.run(cache="refresh")
        finally:
            comes_back.join()
        assert record.published[0].rows == 3 and record.published[0].at - record.ended_at > 1
        assert postgres_place.count() == 6

    def test_gets_it_later(self, postgres_place: Place, server: Server) -> None:
        postgres_place.settings("retry_s = 1\n")
        server.stop()
        try:
            done = postgres_place.forge("run", str(postgres_place.folder))
            assert done.returncode == 7 and "Database 'results' does not answer" in done.stdout
            assert postgres_place.forge("publish").returncode == 7
        finally:
            server.start()
        assert postgres_place.count() == 0
        said = postgres_place.forge("publish")
        assert said.returncode == 0 and "scores: results.model_scores (3 rows)" in said.stdout
        assert postgres_place.count() == 3 and postgres_place.forge("publish").stderr == "nothing is to be published\n"
        record = postgres_place.forge.read_record(next(iter(postgres_place.forge.executions())))
        assert not record.unpublished and record.published[0].rows == 3

    def test_does_not_show_its_password(self, sqlite_place: Place) -> None:
        sqlite_place.url = "postgresql://someone:sw0rdfish@127.0.0.1:9/none"
        sqlite_place.settings("retry_s = 0\n")
        done = sqlite_place.forge("run", str(sqlite_place.folder))
        assert done.returncode == 7 and "does not answer" in done.stdout and "sw0rdfish" not in done.stdout + done.stderr
        (execution_id,) = sqlite_place.forge.executions()
        kept = (sqlite_place.home / "executions" / execution_id).rglob("*")
        assert not any("sw0rdfish" in path.read_text("utf-8", "replace") for path in kept if path.is_file())

    def test_that_nobody_may_write_is_not_tried_again(self, sqlite_place: Place, tmp_path: Path) -> None:
        sqlite_place.url = f"sqlite:///{tmp_path}/no/such/folder.db"
        sqlite_place.settings("")
        began = time.monotonic()
        assert "Database 'results' cannot be written: unable to open database file" in sqlite_place.run().unpublished[0].error
        assert time.monotonic() - began < 30


class TestKilled:
    def test_while_it_waits_for_the_database(self, sqlite_place: Place) -> None:
        path = sqlite_place.url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            with sqlite_place.forge.started("run", str(sqlite_place.folder)) as process:
                wait_until(
                    "success",
                    lambda: any('"succeeded"' in p.read_text() for p in sqlite_place.home.glob("executions/*/record.json")),
                )
                time.sleep(1)
                process.kill()
            holder.execute("ROLLBACK")
        assert sqlite_place.count() == 0
        done = sqlite_place.forge("gc")
        assert "1 results published" in done.stdout and sqlite_place.count() == 3, done.stdout + done.stderr
        assert sqlite_place.forge.read_record(next(iter(sqlite_place.forge.executions()))).published[0].rows == 3

    @pytest.mark.parametrize(("kind", "kills"), [
        ("sqlite", 4), *(pytest.param(kind, 50, marks=[pytest.mark.slow, pytest.mark.timeout(900)]) for kind in ("sqlite", "postgres")),
    ])  # fmt: skip
    def test_at_any_moment_each_row_is_there_once(self, request: pytest.FixtureRequest, kind: str, kills: int) -> None:
        place: Place = request.getfixturevalue(f"{kind}_place")
        place.write(HEADER + "".join(f"tree,{number},0.5,true,2026-01-02\n" for number in range(30_000)))
        place.run()
        whole = {30_000}
        for number in range(kills):
            with place.forge.started("run", str(place.folder), "--cache", "refresh") as process:
                wait_until("a mark", lambda: bool(marked(load_settings(place.home))))
                time.sleep(4.0 * number / kills)
                process.send_signal(signal.SIGKILL)
            done = place.forge("gc")
            assert done.returncode == 0, done.stderr
        counts = {row[0] for row in place.ask("SELECT count(*) FROM model_scores GROUP BY execution_id")}
        assert counts == whole
        succeeded = [one for one in map(place.forge.read_record, place.forge.executions()) if one.succeeded]
        assert place.count() == 30_000 * len(succeeded) and not any(one.unpublished for one in succeeded)
        assert all(one.published[0].rows == 30_000 for one in succeeded) and marked(load_settings(place.home)) == []


def test_many_who_publish_the_same_at_once(place: Place) -> None:
    place.write(HEADER + "".join(f"tree,{number},0.5,true,2026-01-02\n" for number in range(20_000)))
    place.url, right = "sqlite:////no/such/folder.db", place.url
    place.settings("")
    record = place.run()
    assert record.unpublished
    place.url = right
    place.settings("")
    command = [*place.forge.command, "publish", record.execution_id]
    at_once = [subprocess.Popen(command, env=place.forge.environment(), stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate()[0] for process in at_once]
    assert [process.returncode for process in at_once] == [0] * 4, said
    assert place.count() == 20_000


def test_nothing_of_a_suspect_execution_is_published_unless_somebody_has_looked(sqlite_place: Place) -> None:
    sqlite_place.edit("table: results", "table: results")
    engine = Engine(load_settings(sqlite_place.home))
    spec = spec_from_definition(load_definition(str(sqlite_place.folder), engine.settings), engine.settings)
    record = engine.run(msgspec.structs.replace(spec, publish={}))
    suspect = engine.publish(msgspec.structs.replace(record, suspect=True), spec.publish)
    assert (
        suspect.unpublished[0].error.startswith("The execution is suspect: nothing of it is published.")
        and sqlite_place.count() == 0
    )
    assert not engine.publish(suspect, spec.publish, force=True).unpublished and sqlite_place.count() == 3


def test_what_is_still_to_be_published_is_not_removed(sqlite_place: Place) -> None:
    sqlite_place.url, right = "sqlite:////no/such/folder.db", sqlite_place.url
    sqlite_place.settings("")
    record = sqlite_place.run()
    engine, everything = Engine(load_settings(sqlite_place.home)), Rules(older_than_s=0.0, max_bytes=0, keep_last=0)
    assert record.unpublished and removable(engine, everything) == []
    sqlite_place.url = right
    sqlite_place.settings("")
    engine = Engine(load_settings(sqlite_place.home))
    assert not engine.publish_pending(record).unpublished
    assert [one.what for one in removable(engine, everything)] == [record.execution_id]


def test_gc_goes_on_behind_what_is_no_execution(sqlite_place: Place) -> None:
    (sqlite_place.home / "publications").mkdir(exist_ok=True)
    (sqlite_place.home / "publications" / "notes.txt").touch()
    assert any(
        "'notes.txt' is no execution id" in problem for problem in reconcile(Engine(load_settings(sqlite_place.home))).problems
    )


def test_from_python_a_stage_that_could_not_be_published_is_no_success(
    sqlite_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_HOME", str(sqlite_place.home))
    (sqlite_place.folder / "analysis.yaml").write_text(
        "stages:\n  first: {command: [sh, -c, 'printf \"n\\\\n7\\\\n\" > $FORGE_OUTPUTS/t.csv'], outputs: {t: t.csv}}\n  second: {command: ['true']}\n"
        "publish: {t: {output: t, table: results.model_numbers, columns: {n: {type: int, max: 5}}}}\n"
    )
    with pytest.raises(forge_orchestration.ExecutionFailed, match="column 'n' of row 1 is '7', and must be at most 5"):
        forge_orchestration.run(str(sqlite_place.folder), check=True)


def test_in_dagster_the_step_fails_and_another_attempt_publishes_what_is_there(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, reuse=True)
    deployment.build_runtime()
    script = "import os\nopen(os.environ['FORGE_OUTPUTS'] + '/t.csv', 'w').write('n\\n7\\n')\nprint('computed')\n"
    definition = (
        "outputs: {{t: t.csv}}\npublish: {{t: {{output: t, table: results.numbers, columns: {{n: {{type: int, max: {most}}}}}}}}}\n"
    )
    deployment.add_analysis("numbers", script, definition.format(most=5))
    failed = deployment.job_execute("numbers")
    said = failed.stdout + failed.stderr
    assert failed.returncode == 1 and "The analysis has succeeded, and its result could not be published: publication 't':" in said
    assert "column 'n' of row 1 is '7', and must be at most 5" in said
    path = deployment.analyses / "numbers" / "analysis.yaml"
    path.write_text(path.read_text().replace("max: 5", "max: 9"))
    done = deployment.job_execute("numbers")
    assert done.returncode == 0, done.stderr
    first, second = (one for one in deployment.records() if one["analysis"] == "numbers")
    assert first["published"][0]["at"] is None and second["cache"]["hit"] and second["published"][0]["rows"] == 1
    with closing(sqlite3.connect(deployment.home / "results.db")) as database:
        assert database.execute("SELECT execution_id, n FROM numbers").fetchall() == [(first["execution_id"], 7)]


@pytest.mark.slow  # the attempts wait for each other
def test_in_dagster_another_attempt_of_the_step_runs_nothing_again(tmp_path: Path) -> None:
    deployment = Deployment(
        tmp_path, '[databases.results]\nurl = "postgresql://127.0.0.1:9/none"\ntables = ["*"]\n[publication]\nretry_s = 0\n'
    )
    deployment.build_runtime()
    script = "import os\nopen(os.environ['FORGE_OUTPUTS'] + '/t.csv', 'w').write('n\\n7\\n')\n"
    deployment.add_analysis(
        "numbers", script, "outputs: {t: t.csv}\npublish: {t: {output: t, table: results.numbers, columns: {n: {type: int}}}}\n"
    )
    failed = deployment.job_execute("numbers")
    assert failed.returncode == 1 and "could not be published" in failed.stdout + failed.stderr
    assert sum(one["analysis"] == "numbers" for one in deployment.records()) == 1, (
        "reuse is off here, and it did not run again all the same"
    )


def test_in_dagster_each_partition_that_could_not_be_published_is_told(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path)
    deployment.build_runtime()
    script = "import os\nopen(os.environ['FORGE_OUTPUTS'] + '/t.csv', 'w').write('n\\n%s\\n' % os.environ['FORGE_PARTITION'])\n"
    deployment.add_analysis(
        "numbers",
        script,
        "partitions: {keys: ['3', '7']}\noutputs: {t: t.csv}\npublish: {t: {output: t, table: results.numbers, columns: {n: {type: int, max: 5}}}}\n",
    )
    failed = subprocess.run(
        [*deployment.job_command("numbers"), "--tags", '{"dagster/asset_partition_range_start": "3", "dagster/asset_partition_range_end": "7"}'],
        env=deployment.environment, cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    said = failed.stdout + failed.stderr
    assert (
        failed.returncode == 1
        and "1 of 2 partitions failed: 7. The first, 7: The analysis has succeeded, and its result could not be published" in said
    )
    with closing(sqlite3.connect(deployment.home / "results.db")) as database:
        assert database.execute("SELECT n FROM numbers").fetchall() == [(3,)]
