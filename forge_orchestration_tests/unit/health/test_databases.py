"""Damage in databases is found and named, and what could not be looked at is not called damaged."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.health.databases import database_checks
from forge_orchestration.model.health import CheckResult
from forge_orchestration.settings import Settings, load_settings

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with two tables, an index and a reference, in a folder with a hostile name."""
    folder = tmp_path / "data ö?'#"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "lab.db")) as database:
        database.executescript(
            "CREATE TABLE samples (id INTEGER PRIMARY KEY, name TEXT);"
            "CREATE TABLE counts (sample INTEGER REFERENCES samples(id), gene TEXT, number INTEGER);"
            "CREATE INDEX by_gene ON counts(gene);"
        )
        database.executemany("INSERT INTO samples VALUES (?, ?)", [(n, f"sample {n}") for n in range(200)])
        database.executemany("INSERT INTO counts VALUES (?, ?, ?)", [(n % 200, f"gene {n}", n) for n in range(5000)])
        database.commit()
    return folder / "lab.db"


def checked(settings: Settings, path: Path, *, full: bool = True) -> dict[str, CheckResult]:
    settings = msgspec.structs.replace(settings, protected_databases={"lab": f"sqlite:///{path}"})
    return {result.name: result for result in database_checks(settings, full=full)}


@pytest.mark.parametrize("full", [False, True])
def test_a_whole_one(settings: Settings, path: Path, full: bool) -> None:
    before = path.read_bytes()
    results = checked(settings, path, full=full)
    assert {name: result.passed for name, result in results.items()} == {"integrity": True, "foreign_keys": True, "wal": True}
    assert all(result.target == "lab" and not result.remedy for result in results.values())
    assert path.read_bytes() == before and not path.with_name("lab.db-journal").exists()


def root_page(path: Path, name: str) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [name]).fetchone()[0])


@pytest.mark.parametrize("table", ["samples", "counts"])
def test_a_page_of_zeros(settings: Settings, path: Path, table: str) -> None:
    at = (root_page(path, table) - 1) * PAGE
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes(PAGE))
    result = checked(settings, path)["integrity"]
    assert not result.passed and result.severity == "error" and "is corrupt" in result.finding and "recover" in result.remedy
    assert table in result.finding or "malformed" in result.finding, result.finding


def test_an_index_that_lost_a_row_is_found_by_the_full_check_and_named(settings: Settings, path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA writable_schema = ON")
        # behind the index' back, as a crash between two writes would
        database.execute("DELETE FROM sqlite_master WHERE name = 'by_gene'")
        database.commit()
    with closing(sqlite3.connect(path)) as database:
        database.execute("DELETE FROM counts WHERE number = 17")
        database.execute("PRAGMA writable_schema = ON")
        database.execute(
            "INSERT INTO sqlite_master VALUES ('index', 'by_gene', 'counts', ?, 'CREATE INDEX by_gene ON counts(gene)')",
            [root_of_lost_index(path)],
        )
        database.commit()
    result = checked(settings, path)["integrity"]
    assert not result.passed and "by_gene" in result.finding, result.finding


def root_of_lost_index(path: Path) -> int:
    """The first page of index entries that no table has for its own: index pages begin with 2 or 10."""
    content = path.read_bytes()
    return next(at // PAGE + 1 for at in range(PAGE, len(content), PAGE) if content[at] == 2)


def test_a_file_that_is_none(settings: Settings, path: Path) -> None:
    path.write_bytes(b"not a database at all" * 1000)
    result = checked(settings, path)["integrity"]
    assert not result.passed and "is corrupt: file is not a database" in result.finding


def test_a_row_that_points_nowhere_is_a_warning(settings: Settings, path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("DELETE FROM samples WHERE id = 7")
        database.commit()
    results = checked(settings, path)
    assert results["integrity"].passed
    broken = results["foreign_keys"]
    assert not broken.passed and broken.severity == "warning" and "from counts to samples" in broken.finding


def test_one_that_is_locked_is_suspect_and_not_corrupt(settings: Settings, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *words, **settings: real(*words, **{**settings, "timeout": 0.1}))
    with closing(real(path)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        result = checked(settings, path)["connection"]
    assert not result.passed and result.severity == "warning" and "suspect, not known to be corrupt" in result.finding


def test_one_that_is_gone_and_one_that_does_not_answer(settings: Settings, tmp_path: Path) -> None:
    assert "is not there" in checked(settings, tmp_path / "no.db")["connection"].finding
    settings = msgspec.structs.replace(settings, protected_databases={"x": "postgresql://127.0.0.1:9/x", "y": "nonsense://x"})
    results = database_checks(settings, full=False)
    assert [(one.target, one.name, one.passed, one.severity) for one in results] == [
        ("x", "connection", False, "warning"), ("y", "connection", False, "warning"),
    ]  # fmt: skip


def test_they_come_from_the_settings(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "settings.toml").write_text('[protected_databases]\nlab = "sqlite:////srv/lab.db"\n')
    assert load_settings(home).protected_databases == {"lab": "sqlite:////srv/lab.db"}
