"""Dagster's storage in SQLite, with databases of events that stay open.

Dagster opens the database of a run anew for each event, and closes it, which copies the whole write-ahead log into it: some 8 ms
an event, of which a step has six, and twice that for those of assets. Files and tables are Dagster's own: either class reads what
the other has written, and both may be at work at once.
"""

import contextlib
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.sql import create_engine
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage, _event_logs_directory
from dagster._serdes import ConfigurableClassData

_KEPT_OPEN = 8  # databases: the index of all runs, and those runs that a server shows at one time


class _Open:
    """An open database of events. It is good for as long as the file of that name is the one that was opened, in one process."""

    def __init__(self, path: str, url: str) -> None:
        self._path = path
        self.engine = create_engine(
            url,
            poolclass=sqlalchemy.QueuePool, pool_size=1, max_overflow=1,  # the migrations ask for a second
            connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        )  # fmt: skip
        self._pid = os.getpid()
        self._file: tuple[int, int] | None = None

    def opened(self) -> None:
        """It is there now."""
        self._file = _identity(self._path)

    @property
    def is_good(self) -> bool:
        return self._pid == os.getpid() and self._file is not None and self._file == _identity(self._path)

    def close(self) -> None:
        """A connection of the process that this one was forked from is left alone."""
        self.engine.dispose(close=self._pid == os.getpid())


class OpenEventLogStorage(SqliteEventLogStorage):
    """`SqliteEventLogStorage` that keeps its connections."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._open: dict[str, _Open] = {}  # the latest used last
        super().__init__(base_dir, inst_data)

    @contextlib.contextmanager
    def _connect(self, shard: str) -> Iterator[sqlalchemy.Connection]:
        with self._db_lock:
            database = self._opened(shard)
            try:
                with database.engine.connect() as connection, connection.begin():
                    yield connection
            except BaseException:
                # what was not read to its end keeps an old view of the database open, and whoever is next would see that
                self._open.pop(shard, None)
                database.close()
                raise

    def _opened(self, shard: str) -> _Open:
        database = self._open.pop(shard, None)
        if database is not None and not database.is_good:
            database.close()
            database = None
        if database is None:
            path = self.path_for_shard(shard)
            database = _Open(path, self.conn_string_for_shard(shard))
            if not _has_schema(path) and not self._copy_template(path):
                self._initdb(database.engine)
                self._keep_template(path)
            database.opened()
        self._open[shard] = database
        while len(self._open) > _KEPT_OPEN:
            self._open.pop(next(iter(self._open))).close()
        return database

    @property
    def _template(self) -> Path:
        """A database of no events, made by this very version of Dagster: to make one takes its migrations 0.15 s."""
        return Path(self._base_dir) / f"template-{dg.__version__}.sqlite"

    def _copy_template(self, path: str) -> bool:
        if os.path.exists(path):
            return False  # it is being made by another process
        copied = f"{path}.{secrets.token_hex(8)}.tmp"
        try:
            shutil.copyfile(self._template, copied)
            os.link(copied, path)
        except FileNotFoundError:
            return False
        except FileExistsError:
            return _has_schema(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copied)
        return True

    def _keep_template(self, path: str) -> None:
        made = f"{self._template}.{secrets.token_hex(8)}.tmp"
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(made)) as target:
            source.backup(target)
            target.execute("DELETE FROM event_logs")
            target.commit()
        os.rename(made, self._template)

    def store_event(self, event: dg.EventLogEntry) -> None:
        super().store_event(event)
        # who watches a run waits for its file to change, and with a write-ahead log it does not
        with contextlib.suppress(FileNotFoundError):  # somebody has wiped all runs
            os.utime(self.path_for_shard(event.run_id))

    def dispose(self) -> None:
        super().dispose()
        with self._db_lock:
            while self._open:
                self._open.popitem()[1].close()


class OpenSqliteStorage(DagsterSqliteStorage):
    """`DagsterSqliteStorage` with that storage of events."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        self._event_log_storage = OpenEventLogStorage(_event_logs_directory(base_dir))

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Any) -> "OpenSqliteStorage":
        return cls.from_local(inst_data=inst_data, **config_value)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    return facts.st_dev, facts.st_ino


def _has_schema(path: str) -> bool:
    """Whether Dagster's migrations have made this database. They never touch one that is there; `dagster instance migrate` does."""
    if not os.path.exists(path):
        return False
    try:
        with contextlib.closing(
            sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True, timeout=SQLITE_BUSY_TIMEOUT_SECONDS)
        ) as database:
            return database.execute("SELECT 1 FROM alembic_version").fetchone() is not None
    except sqlite3.DatabaseError:
        return False
