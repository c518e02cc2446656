"""The store: an index of executions in SQLite, and what must be remembered between them.

`record.json` is the truth; rows can be rebuilt from it. WAL, so that readers never wait for the one writer.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from forge_orchestration.errors import ForgeError, StoreError
from forge_orchestration.executions import rows
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.reasons import Status
from forge_orchestration.model.record import ExecutionRecord

_SCHEMA_VERSION = 5
_SCHEMA = f"""
CREATE TABLE executions ({", ".join(rows.DEFINITIONS)},
    controller_pid INTEGER, controller_start INTEGER, removed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE file_digests (
    device INTEGER, inode INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT NOT NULL,
    PRIMARY KEY (device, inode)) WITHOUT ROWID;
"""
# each with what follows in the order in which the latest are asked for, so that these are read, and not all that there are
_INDEXES = {
    "executions_by_status": "(status, execution_id)",
    "executions_by_analysis": "(analysis, execution_id)",
    "executions_by_partition": "(analysis, partition, ended_at)",
    "executions_by_end": "(ended_at)",
    "executions_by_run": "(dagster_run_id, analysis, partition, status, removed, ended_at, execution_id) WHERE dagster_run_id IS NOT NULL",
    "executions_by_fingerprint": "(fingerprint, status, removed, ended_at, execution_id) WHERE fingerprint IS NOT NULL",
}
_ADDED = {
    1: (*rows.SINCE_FIRST, "removed INTEGER NOT NULL DEFAULT 0", *rows.SINCE_SECOND, *rows.SINCE_THIRD),
    2: (*rows.SINCE_SECOND, *rows.SINCE_THIRD),
    3: rows.SINCE_THIRD,
}
"""The columns that an index of each earlier schema lacks."""
_FINAL = ", ".join(f"'{status}'" for status in Status if status.is_final)
_SAVE = (
    f"INSERT INTO executions ({', '.join(rows.COLUMNS)}, removed) VALUES ({', '.join('?' * len(rows.COLUMNS))}, 0)"
    f" ON CONFLICT (execution_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in (*rows.COLUMNS[1:], 'removed'))}"
)
_BEGIN = (
    f"INSERT INTO executions ({', '.join(rows.COLUMNS)}, controller_pid, controller_start)"
    f" VALUES ({', '.join('?' * (len(rows.COLUMNS) + 2))})"
)


class Store:
    """One connection, usable from several threads, one statement at a time.

    Raises:
        StoreError: The database cannot be opened, or was made by a newer Forge.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        with self._told("opened"):
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            if self._db.execute("PRAGMA user_version").fetchone()[0] != _SCHEMA_VERSION:
                self._create()
            self._db.execute("PRAGMA synchronous=NORMAL")

    def _create(self) -> None:
        os.chmod(self._path, 0o600)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            version = self._db.execute("PRAGMA user_version").fetchone()[0]  # another process may have been first
            if version > _SCHEMA_VERSION:
                raise StoreError(f"{self._path} was made by a newer Forge (schema {version}).", "Update this one.")
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
            for column in _ADDED.get(version, ()):
                self._db.execute(f"ALTER TABLE executions ADD COLUMN {column}")
            if version == 1:
                self._fill()
            if version != _SCHEMA_VERSION:
                for name, columns in _INDEXES.items():
                    self._db.execute(f"DROP INDEX IF EXISTS {name}")
                    self._db.execute(f"CREATE INDEX {name} ON executions {columns}")
                self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # of a disk that is full SQLite has done it itself
                self._db.execute("ROLLBACK")
            raise

    def _fill(self) -> None:
        """Fill what an index of the first schema did not hold, from the records."""
        for execution_id in [row[0] for row in self._db.execute("SELECT execution_id FROM executions")]:
            with contextlib.suppress(ForgeError):  # what cannot be read stays as it is known
                record = ExecutionFolder(self._path.parent / "executions", execution_id).read_record()
                if record.status.is_final:
                    self._write(record)

    def save(self, record: ExecutionRecord) -> None:
        """Insert or replace the row of `record`."""
        with self._lock, self._told("written"):
            self._write(record)

    def _write(self, record: ExecutionRecord) -> None:
        self._db.execute(_SAVE, tuple(rows.row_of(record).values()))

    def begin(self, record: ExecutionRecord, pid: int, start_time: int) -> None:
        """Insert the row of `record`, claimed by its controller from its first moment: `forge gc` never sees it without."""
        with self._lock, self._told("written"):
            self._db.execute(_BEGIN, (*rows.row_of(record).values(), pid, start_time))

    def claim(self, execution_id: str, pid: int, start_time: int) -> None:
        """Remember which controller waits for an execution."""
        with self._lock, self._told("written"):
            self._db.execute(
                "UPDATE executions SET controller_pid = ?, controller_start = ? WHERE execution_id = ?",
                (pid, start_time, execution_id),
            )

    def forget(self, execution_id: str) -> None:
        """Remove an execution. One that has ended is still counted in statistics: what counts upwards never goes back."""
        with self._lock, self._told("written"):
            self._db.execute(f"DELETE FROM executions WHERE execution_id = ? AND status NOT IN ({_FINAL})", (execution_id,))
            self._db.execute("UPDATE executions SET removed = 1, message = '' WHERE execution_id = ?", (execution_id,))

    def controller(self, execution_id: str) -> tuple[int, int] | None:
        """Pid and start time of the controller that claimed an execution."""
        with self._lock, self._told("read"):
            row = self._db.execute(
                "SELECT controller_pid, controller_start FROM executions WHERE execution_id = ?", (execution_id,)
            ).fetchone()
        return (row[0], row[1]) if row and row[0] is not None else None

    def list(self, *, limit: int = 50, status: str | None = None, analysis: str | None = None) -> builtins.list[dict[str, object]]:
        """Rows, the newest first."""
        where, values = ["removed = 0"], []
        for column, value in (("status", status), ("analysis", analysis)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        query = f"SELECT {', '.join(rows.LISTED)} FROM executions WHERE {' AND '.join(where)} ORDER BY execution_id DESC LIMIT ?"
        return [dict(zip(rows.LISTED, row, strict=True)) for row in self.read(query, (*values, limit))]

    def read(self, query: str, values: Sequence[object] = ()) -> builtins.list[tuple[Any, ...]]:
        """What a query finds; for modules of this package, which know the columns."""
        with self._lock, self._told("read"):
            return self._db.execute(query, values).fetchall()

    def status(self, execution_id: str) -> str | None:
        """The status in an execution's row; None if it has none."""
        with self._lock, self._told("read"):
            row = self._db.execute(
                "SELECT status FROM executions WHERE execution_id = ? AND removed = 0", (execution_id,)
            ).fetchone()
        return str(row[0]) if row else None

    def unfinished(self) -> builtins.list[str]:
        """Ids of executions whose row has no final status."""
        return list(self.unfinished_controllers())

    def unfinished_controllers(self) -> dict[str, tuple[int, int] | None]:
        """Pid and start time of the controller of each execution whose row has no final status; None if none claimed it."""
        query = """SELECT execution_id, controller_pid, controller_start FROM executions
            WHERE status IN ('queued', 'preparing', 'running', 'collecting')"""
        with self._lock, self._told("read"):
            return {row[0]: (row[1], row[2]) if row[1] is not None else None for row in self._db.execute(query)}

    def may_have_run(self, since: float, until: float) -> builtins.list[tuple[str, float | None, float | None]]:
        """Id, start and end, as far as the index has them, of executions that did not end before the one moment or come after the other."""
        query = """SELECT execution_id, started_at, ended_at FROM executions
            WHERE queued_at <= ? AND (ended_at IS NULL OR ended_at >= ?) ORDER BY execution_id"""
        with self._lock, self._told("read"):
            return list(self._db.execute(query, (until, since)))

    def controllers_of_run(self, dagster_run_id: str) -> set[tuple[int, int]]:
        """Pid and start time of each process that started an execution for a Dagster run."""
        query = "SELECT controller_pid, controller_start FROM executions WHERE dagster_run_id = ? AND controller_pid IS NOT NULL"
        with self._lock, self._told("read"):
            return {(row[0], row[1]) for row in self._db.execute(query, (dagster_run_id,))}

    def ids(self) -> set[str]:
        """Ids of all executions."""
        with self._lock, self._told("read"):
            return {row[0] for row in self._db.execute("SELECT execution_id FROM executions WHERE removed = 0")}

    def executions_of_run(self, dagster_run_id: str) -> builtins.list[str]:
        """Ids of what was begun for a Dagster run, the latest first."""
        query = "SELECT execution_id FROM executions WHERE dagster_run_id = ? AND removed = 0 ORDER BY queued_at DESC, execution_id DESC"
        return [row[0] for row in self.read(query, (dagster_run_id,))]

    def partitions_of_run(self, dagster_run_id: str, analysis: str) -> dict[str, str]:
        """By partition, the id of the latest execution that was begun of an analysis for a Dagster run."""
        query = """SELECT partition, execution_id FROM executions WHERE dagster_run_id = ? AND analysis = ? AND partition IS NOT NULL
            AND removed = 0 ORDER BY queued_at, execution_id"""
        return dict(self.read(query, (dagster_run_id, analysis)))

    def latest_success(self, analysis: str, dagster_run_id: str | None, partition: str | None = None) -> str | None:
        """Id of the latest execution of an analysis that succeeded; of one Dagster run, or of all if that is None.

        Args:
            partition: Of which it was, or of none: an analysis may have had partitions, or have them since.
        """
        of_run = "" if dagster_run_id is None else "AND dagster_run_id = ?"
        # `+status` keeps SQLite from the index of that: most have succeeded
        query = f"""SELECT ended_at, execution_id FROM executions WHERE analysis = ? AND partition IS ? {of_run} AND +status = ?
            AND removed = 0 ORDER BY ended_at DESC, execution_id DESC LIMIT 1"""
        run = () if dagster_run_id is None else (dagster_run_id,)
        found = [row for one in {partition, None} for row in self.read(query, (analysis, one, *run, Status.SUCCEEDED))]
        latest = max(found, key=lambda row: (row[0] or 0.0, row[1]), default=None)
        return str(latest[1]) if latest is not None else None

    def results(self, fingerprint: str) -> builtins.list[str]:
        """Ids of executions of a fingerprint that succeeded and may be reused, the latest first."""
        query = """SELECT execution_id FROM executions WHERE fingerprint = ? AND status = ? AND removed = 0
            ORDER BY ended_at DESC, execution_id DESC"""
        return [row[0] for row in self.read(query, (fingerprint, Status.SUCCEEDED))]

    def twins_before(self, fingerprint: str, execution_id: str) -> builtins.list[str]:
        """Ids of executions of a fingerprint that have not ended and were begun before this one."""
        query = f"""SELECT execution_id FROM executions WHERE fingerprint = ? AND status NOT IN ({_FINAL}) AND removed = 0
            AND rowid < (SELECT rowid FROM executions WHERE execution_id = ?) ORDER BY rowid"""
        return [row[0] for row in self.read(query, (fingerprint, execution_id))]

    def latest_of(self, analysis: str, partition: str | None) -> builtins.list[str]:
        """Ids of executions of an analysis, as a whole or for a partition, that have ended, whatever came of them; some, that which ended last first."""
        query = f"""SELECT execution_id FROM executions WHERE analysis = ? AND partition IS ? AND +status IN ({_FINAL})
            AND removed = 0 ORDER BY ended_at DESC, execution_id DESC LIMIT 20"""
        return [row[0] for row in self.read(query, (analysis, partition))]

    def digest(self, facts: os.stat_result) -> str | None:
        """The digest of a file that has not changed since it was kept, by device, inode, size and both times."""
        query = "SELECT sha256 FROM file_digests WHERE device = ? AND inode = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ?"
        with self._lock, self._told("read"):
            row = self._db.execute(query, _file_key(facts)).fetchone()
        return str(row[0]) if row else None

    def keep_digest(self, facts: os.stat_result, sha256: str) -> None:
        """Keep the digest of a file."""
        with self._lock, self._told("written"):
            self._db.execute("INSERT OR REPLACE INTO file_digests VALUES (?, ?, ?, ?, ?, ?)", (*_file_key(facts), sha256))

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"The execution store {self._path} cannot be {what}: {error}.") from error


def _file_key(facts: os.stat_result) -> tuple[int, int, int, int, int]:
    # SQLite's integers are signed; device and inode numbers are not
    return (
        _signed(facts.st_dev),
        _signed(facts.st_ino),
        facts.st_size,
        facts.st_mtime_ns,
        facts.st_ctime_ns,
    )


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
