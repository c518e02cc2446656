"""Databases that are known only to SQLAlchemy: here SQLite's own dialect under another name, with real files."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import sqlalchemy
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from forge_orchestration.health import other_databases
from forge_orchestration.health.databases import database_checks
from forge_orchestration.model.health import CheckResult
from forge_orchestration.settings import Settings


class LabDialect(SQLiteDialect_pysqlite):
    """Another database, as far as Forge can know."""

    name = "lab"
    supports_statement_cache = True


class SlowDialect(LabDialect):
    supports_statement_cache = True

    def connect(self, *words: object, **settings: object) -> object:  # type: ignore[override]
        import threading

        threading.Event().wait(30)
        return super().connect(*words, **settings)


class BareDialect(LabDialect):
    """It cannot list its tables."""

    supports_statement_cache = True

    def get_table_names(self, *words: object, **settings: object) -> list[str]:  # type: ignore[override]
        raise NotImplementedError


@pytest.fixture(autouse=True)
def dialects() -> Iterator[None]:
    for name, kind in (("lab", "LabDialect"), ("slow", "SlowDialect"), ("bare", "BareDialect")):
        registry.register(name, __name__, kind)
    yield
    for name in ("lab", "slow", "bare"):
        registry.impls.pop(name, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "x.db")) as made:
        made.executescript("CREATE TABLE samples (name TEXT); CREATE TABLE \"odd 'name\" (n); INSERT INTO samples VALUES ('a');")
    return tmp_path / "x.db"


def checked(settings: Settings, url: str) -> list[CheckResult]:
    return database_checks(msgspec.structs.replace(settings, protected_databases={"x": url}), full=False)


def test_it_answers_and_says_what_that_does_not_prove(settings: Settings, path: Path) -> None:
    connection, read = checked(settings, f"lab:///{path}")
    assert (connection.name, connection.passed, connection.finding) == ("connection", True, "lab answers")
    assert (read.name, read.passed) == ("read", True)
    assert read.finding == "a row of each of 2 tables was read; that does not prove that the rest is whole"


def test_one_that_cannot_list_its_tables_is_only_asked_whether_it_answers(settings: Settings, path: Path) -> None:
    assert [(one.name, one.passed) for one in checked(settings, f"bare:///{path}")] == [("connection", True)]


def test_a_table_that_cannot_be_read_is_suspect(settings: Settings, path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        page = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'samples'").fetchone()[0]
    with open(path, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    connection, read = checked(settings, f"lab:///{path}")
    assert connection.passed and not read.passed and read.severity == "warning"
    assert "malformed" in read.finding and "suspect, not known to be corrupt" in read.finding and "sqlalche" not in read.finding


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("lab:////nowhere/at/all.db", "unable to open"), ("nonsense://u:hunter2@h/db", "Can't load plugin"),
        ("mysql://u:hunter2@h/db", "its driver MySQLdb is not installed"), ("mysql://u:hunter2@h:port/db", "its URL cannot be read"),
        ("no url hunter2", "its URL has no beginning"),
    ],
)  # fmt: skip
def test_one_that_cannot_be_had_is_a_sentence_without_its_password(settings: Settings, url: str, word: str) -> None:
    (result,) = checked(settings, url)
    assert (result.name, result.passed, result.severity) == ("connection", False, "warning")
    assert word in result.finding and "hunter2" not in result.finding + result.remedy and "\n" not in result.finding


def test_one_that_never_answers_is_given_up(settings: Settings, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_databases, "_TIMEOUT_S", 0.2)
    (result,) = checked(settings, f"slow:///{path}")
    assert "does not answer within" in result.finding and "suspect" in result.finding


def test_nothing_is_written_and_nothing_stays_open(settings: Settings, path: Path) -> None:
    before = path.read_bytes()
    checked(settings, f"lab:///{path}")
    assert path.read_bytes() == before
    with closing(sqlite3.connect(path, timeout=0)) as database:
        database.execute("BEGIN EXCLUSIVE")
    assert sqlalchemy.__version__ >= "2"
