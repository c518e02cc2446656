"""Whether the databases that a deployment protects are whole: SQLite by its own checks, PostgreSQL by its server and `pg_amcheck`.

Nothing is written to any of them. What could not be looked at is told apart from what is damaged: a database that is locked, or a
server that does not answer, is `suspect`, and only what a check has read and found wrong is corrupt.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from forge_orchestration.errors import SpecError
from forge_orchestration.health.other_databases import other_checks
from forge_orchestration.model.database_url import DatabaseUrl
from forge_orchestration.model.health import CheckResult
from forge_orchestration.runtimes.catalog import runtime_names
from forge_orchestration.settings import Settings
from forge_orchestration.units import format_bytes

_MOST_FINDINGS = 5
_LARGE_WAL_BYTES = 256 << 20
_TIMEOUT_S = {False: 60.0, True: 3600.0}
_SUSPECT = "suspect, not known to be corrupt"


def database_checks(settings: Settings, *, full: bool, only: Collection[str] | None = None) -> list[CheckResult]:
    """The checks of every database under `protected_databases` in the settings, in that order.

    Args:
        only: Those of these names.
        full: Read everything (`integrity_check`, `pg_amcheck` with all indexes); else what takes seconds.

    Raises:
        SpecError: One has the name of something else that is checked.
    """
    check_database_names(settings)
    named = {name: url for name, url in settings.protected_databases.items() if only is None or name in only}
    return [result for name, url in named.items() for result in _checks(name, url, full)]


def check_database_names(settings: Settings) -> None:
    """Refuse a database that is called as something else is that is checked.

    Raises:
        SpecError: There is one.
    """
    for name in settings.protected_databases:
        if name in ("host", "storage", *runtime_names(settings)):
            raise SpecError(f"A database under [protected_databases] is called '{name}', as something else that is checked.")


def _checks(name: str, written: str, full: bool) -> Iterator[CheckResult]:
    try:
        url = DatabaseUrl(written)
    except ValueError as error:
        yield _result(name, "connection", False, f"cannot be looked at: {error}", "Correct its URL in settings.toml.", "warning")
        return
    if url.kind == "sqlite":
        yield from sqlite_checks(name, Path(written.split("://", 1)[1].removeprefix("/")), full=full)
    elif url.kind == "postgresql":
        yield from _postgresql(name, url, full)
    else:
        yield from other_checks(name, url)


def _result(
    name: str, check: str, passed: bool, finding: str, remedy: str = "", severity: Literal["error", "warning"] = "error", *,
    corruption: bool = False,
) -> CheckResult:  # fmt: skip
    return CheckResult(
        name=check, target=name, passed=passed, severity=severity, finding=finding, remedy="" if passed else remedy,
        corruption=corruption and not passed,
    )  # fmt: skip


# -- SQLite ----------------------------------------------------------------------------------------------------------


def sqlite_checks(name: str, path: Path, *, full: bool) -> Iterator[CheckResult]:
    """The checks of one SQLite file, which is opened to be read only."""
    if not path.is_file():
        yield _result(name, "connection", False, f"{path} is not there", "Restore it from a backup, or correct settings.toml.")
        return
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=10)) as database:
            yield from _sqlite_contents(name, path, database, full)
    except sqlite3.OperationalError as error:
        yield _result(
            name, "connection", False, f"{path} cannot be looked at ({error}): {_SUSPECT}", "See who holds it.", "warning"
        )
    except sqlite3.DatabaseError as error:
        yield _result(name, "integrity", False, f"{path} is corrupt: {error}", _restore(path), corruption=True)


def _sqlite_contents(name: str, path: Path, database: sqlite3.Connection, full: bool) -> Iterator[CheckResult]:
    check = "integrity_check" if full else "quick_check"
    said = [str(row[0]) for row in database.execute(f"PRAGMA {check}({_MOST_FINDINGS})")]
    whole = said == ["ok"]
    finding = f"{path}: {check} finds nothing" if whole else f"{path} is corrupt: {_first(said)}{_tables(database, said)}"
    yield _result(name, "integrity", whole, finding, _restore(path), corruption=True)
    if not whole:
        return
    broken = [(row[0], row[2]) for row in database.execute("PRAGMA foreign_key_check")]
    yield _result(
        name, "foreign_keys", not broken,
        f"{len(broken)} rows point to rows that are not there, the first from {broken[0][0]} to {broken[0][1]}" if broken else "every row that is pointed to is there",
        "Look at the rows with: PRAGMA foreign_key_check",
        "warning",
    )  # fmt: skip
    wal = path.with_name(path.name + "-wal")
    size = wal.stat().st_size if wal.exists() else 0
    yield _result(
        name, "wal", size <= _LARGE_WAL_BYTES, f"{format_bytes(size)} wait to be moved into the database",
        "End readers that stay open for long, then: PRAGMA wal_checkpoint(TRUNCATE)", "warning",
    )  # fmt: skip


def _tables(database: sqlite3.Connection, said: list[str]) -> str:
    """The names of the tables and indexes whose root pages the findings name."""
    try:
        roots = {
            str(page): f"{kind} {name}" for kind, name, page in database.execute("SELECT type, name, rootpage FROM sqlite_master")
        }
    except sqlite3.DatabaseError:
        return ""
    named = {roots[word] for line in said for word in line.replace(":", " ").split() if word in roots and "Tree" in line}
    return f" (in {', '.join(sorted(named))})" if named else ""


def _restore(path: Path) -> str:
    return f"Stop whatever writes to it. Keep a copy, try: sqlite3 {path} .recover, or restore a backup."


# -- PostgreSQL ------------------------------------------------------------------------------------------------------


def _postgresql(name: str, url: DatabaseUrl, full: bool) -> Iterator[CheckResult]:
    try:
        version = _psql(url, "SHOW server_version")
    except _Failed as error:
        yield _result(
            name, "connection", False, f"the server does not answer ({_line(error)}): {_SUSPECT}", "Is it running?", "warning"
        )
        return
    yield _result(name, "connection", True, f"PostgreSQL {version.split()[0]} answers")
    try:
        checksums = _psql(url, "SHOW data_checksums") == "on"
        yield _result(
            name, "checksums", checksums,
            "pages have checksums" if checksums else "pages have no checksums, so damage on the disk is not noticed when it is read",
            "With the server stopped: pg_checksums --enable", "warning",
        )  # fmt: skip
        stuck = _psql(url, "SELECT string_agg(slot_name, ', ') FROM pg_replication_slots WHERE NOT active")
        yield _result(
            name, "replication_slots", not stuck, f"slots that nobody reads keep the log: {stuck}" if stuck else "no slot is left behind",
            f"SELECT pg_drop_replication_slot('{stuck.split(',')[0]}')", "warning",
        )  # fmt: skip
        failures = _psql(url, "SELECT coalesce(sum(checksum_failures), 0) FROM pg_stat_database WHERE datname = current_database()")
        yield _result(
            name, "checksum_failures", failures in ("", "0"),
            f"{failures} pages did not match their checksum when they were read" if failures not in ("", "0") else "every page that was read matched its checksum",
            "Restore from a backup; look at the disk.", corruption=True,
        )  # fmt: skip
    except _Failed as error:
        yield _result(name, "connection", False, f"the server does not say how it is ({_line(error)}): {_SUSPECT}", "", "warning")
    yield _amcheck(name, url, full)


def _amcheck(name: str, url: DatabaseUrl, full: bool) -> CheckResult:
    words = ["--heapallindexed", "--rootdescend"] if full else ["--no-dependent-toast"]
    words += ["--no-password"]
    try:
        _run(["pg_amcheck", *words], url, full)
    except _Failed as error:
        said = [line for line in str(error).splitlines() if line.strip()]
        if error.status == 2:  # it has read, and found
            return _result(
                name, "integrity", False, f"corrupt: {_first(said)}", "Keep a copy of its files. Restore from a backup.", corruption=True
            )  # fmt: skip
        return _result(name, "integrity", False, f"cannot be looked at ({_first(said)}): {_SUSPECT}", "Install pg_amcheck; in the database: CREATE EXTENSION amcheck", "warning")  # fmt: skip
    return _result(name, "integrity", True, "pg_amcheck finds nothing" + (", indexes compared with their tables" if full else ""))


class _Failed(Exception):
    """A program of PostgreSQL's has not done what it was asked; its own words."""

    def __init__(self, said: str, status: int | None = None) -> None:
        super().__init__(said)
        self.status = status


def _psql(url: DatabaseUrl, question: str) -> str:
    return _run(["psql", "--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--command", question], url, False)


def _run(command: list[str], url: DatabaseUrl, full: bool) -> str:
    environment = {**os.environ, "PGCONNECT_TIMEOUT": "10", "LC_ALL": "C"}
    if url.password is not None:  # an argument could be seen by every user of the host
        environment["PGPASSWORD"] = url.password
    try:
        done = subprocess.run(
            [_program(command[0]), *command[1:], url.without_password], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_TIMEOUT_S[full], check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise _Failed(f"{command[0]} is not installed (sudo apt-get install postgresql-client)") from None
    except subprocess.TimeoutExpired:
        raise _Failed(f"{command[0]} took longer than {_TIMEOUT_S[full]:.0f} s") from None
    if done.returncode != 0:
        raise _Failed(url.hidden("\n".join(filter(None, (done.stdout.strip(), done.stderr.strip())))), done.returncode)
    return done.stdout.strip()


def _program(name: str) -> str:
    """Where it is: Debian keeps most of PostgreSQL's programs out of the path, a folder a version."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: path.parts[4].zfill(4))
    return str(versions[-1]) if versions else name


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _first(said: list[str]) -> str:
    """The first finding, on one line, and how many there are."""
    text = " ".join(said[0].split())[:300] if said else "it says nothing"
    return text + (f" (and {len(said) - 1} more)" if len(said) > 1 else "")
