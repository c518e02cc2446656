"""Databases as inputs: what is in one at a moment, as a file. No sandbox ever reaches the database itself.

    cache/snapshots/<sha256>            a copy of an SQLite database, or what a query has found, as Parquet
    executions/<id>/snapshots/<name>    another name of it: as long as an execution has one it is kept

`snapshot://DATABASE?QUERY` is taken anew each time, `snapshot://DATABASE?QUERY#sha256=…` is that very one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

from forge_orchestration.errors import SpecError
from forge_orchestration.executions.folder import ExecutionFolder, sync_folder
from forge_orchestration.executions.inputs import SNAPSHOT
from forge_orchestration.model.sections import DatabaseSettings
from forge_orchestration.units import format_bytes

if TYPE_CHECKING:
    from forge_orchestration.settings import Settings

_SOURCE = re.compile(r"snapshot://(?P<database>[A-Za-z0-9_.-]+)(\?(?P<query>[^#]+))?(#sha256=(?P<sha256>[0-9a-f]{64}))?")
_ROWS = 20_000
_UNUSED_S = 3600.0


class Snapshot(NamedTuple):
    """A snapshot that was taken: where it is, what it is called now, and when it was taken."""

    path: Path
    source: str
    sha256: str
    taken_at: float


def snapshot_of(database: str, query: str = "") -> str:
    """The source of an input that is a snapshot of a database, or of what a query finds in it."""
    return f"{SNAPSHOT}{database}" + (f"?{quote(query, safe='')}" if query else "")


def snapshot(name: str, source: str, settings: Settings) -> Snapshot:
    """The snapshot that an input's source stands for: the very one that it names, or one that is taken now.

    Raises:
        SpecError: The deployment does not allow it, the database cannot be read, the query is wrong, or the one that is named is gone.
        BackendUnavailableError: The database does not answer.
    """
    found = _SOURCE.fullmatch(source)
    what = f"Input '{name}' ({source[:200]})"
    if found is None:
        raise SpecError(
            f"{what} is no snapshot.", "Write it as snapshot://DATABASE, or snapshot://DATABASE?QUERY, percent-encoded."
        )
    database = settings.databases.get(found["database"])
    if database is None or not database.snapshots:
        raise SpecError(f"{what} is of a database that analyses are given no snapshots of.", "See [databases] in settings.toml.")
    folder = settings.cache_dir / "snapshots"
    if found["sha256"] is not None:
        path = folder / found["sha256"]
        if not path.is_file():
            raise SpecError(f"{what} is not kept any more.", "Without '#sha256=…' another one is taken.")
        return Snapshot(path=path, source=source, sha256=found["sha256"], taken_at=path.stat().st_mtime)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _temporary(folder) as temporary:
        taken_at = time.time()
        if found["query"] is None:
            _copy(what, found["database"], database, temporary)
        else:
            _ask(what, found["database"], database, unquote(found["query"]), temporary)
        with open(temporary, "rb+") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        path = folder / sha256
        try:
            path.chmod(0o644)  # one that was to be removed, because nobody had it, was used just now
        except FileNotFoundError:
            os.rename(temporary, path)
            sync_folder(folder)
    return Snapshot(path=path, source=f"{source}#sha256={sha256}", sha256=sha256, taken_at=taken_at)


def keep_snapshot(name: str, path: Path, folder: ExecutionFolder) -> None:
    """Give a snapshot another name, in the folder of the execution that reads it; one that it was to read before loses it."""
    kept = folder.path / "snapshots" / name
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    kept.unlink(missing_ok=True)
    os.link(path, kept)


def remove_unused(settings: Settings) -> list[str]:
    """Remove snapshots that no execution has, and that were not taken just now; returns their digests."""
    removed = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(settings.cache_dir / "snapshots"):
            facts = entry.stat(follow_symlinks=False)
            if facts.st_nlink == 1 and facts.st_ctime < time.time() - _UNUSED_S:
                os.unlink(entry.path)
                removed.append(entry.name)
    return removed


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    fd, name = tempfile.mkstemp(prefix=".", dir=folder)
    os.fchmod(fd, 0o644)  # the folder above is closed
    os.close(fd)
    try:
        yield Path(name)
    finally:
        for ending in ("", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name + ending)


def _copy(what: str, name: str, database: DatabaseSettings, target: Path) -> None:
    """All of an SQLite database, as it is between two transactions, while others write to it."""
    from forge_orchestration.executions.tables import Database

    path = Database(name, database).sqlite_path
    if path is None:
        raise SpecError(f"{what} would be all of a database that is no SQLite file.", "Give it a query.")
    if not path.is_file():
        raise SpecError(f"{what} cannot be taken: {path} is not there.", "See [databases] in settings.toml.")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30)) as source:
            size = source.execute("PRAGMA page_count").fetchone()[0] * source.execute("PRAGMA page_size").fetchone()[0]
            _check_size(what, size, database)
            with closing(sqlite3.connect(target)) as copy:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # else whoever reads it would have to write beside it
    except sqlite3.Error as error:
        raise SpecError(f"{what} cannot be taken: {error}.") from error


def _ask(what: str, name: str, database: DatabaseSettings, query: str, target: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    from forge_orchestration.executions.tables import Database

    pieces: list[Any] = []
    try:
        for frame in Database(name, database).ask(what, query, _ROWS):
            piece = arrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
            pieces = [piece] if sum(one.num_rows for one in pieces) == 0 else [*pieces, piece]
            _check_size(what, sum(piece.nbytes for piece in pieces), database)
        parquet.write_table(arrow.concat_tables(pieces, promote_options="permissive"), target)
    except (arrow.ArrowException, ValueError) as error:  # two columns of one name, a type that Parquet has not
        raise SpecError(
            f"{what} cannot be written as Parquet: {' '.join(str(error).split())[:300]}.", "Cast the column in the query."
        ) from error


def _check_size(what: str, size: int, database: DatabaseSettings) -> None:
    if size > database.max_bytes:
        raise SpecError(
            f"{what} has more than {format_bytes(database.max_bytes)}.",
            "See 'max' of the database in settings.toml, or ask for less.",
        )
