"""Databases of the deployment, for control alone: results are added to their tables in one transaction, each execution's once.

Beside the tables there is `forge_publications`, with a row for each execution and publication that has been loaded. It is inserted
first: whoever is second waits for the end of the first one's transaction, and then finds it there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, NoSuchModuleError, OperationalError, SQLAlchemyError

from forge_orchestration.errors import BackendUnavailableError, SpecError
from forge_orchestration.model.database_url import DatabaseUrl
from forge_orchestration.model.publication import Column, ColumnType
from forge_orchestration.model.sections import DatabaseSettings

if TYPE_CHECKING:
    import pandas as pd

_BUSY_S = 5.0
_MAKING_TABLES = 0x466F726765  # a number of ours among the server's advisory locks
_TYPES: dict[ColumnType, sa.types.TypeEngine[Any]] = {
    "int": sa.BigInteger(), "float": sa.Double(), "str": sa.Text(), "bool": sa.Boolean(), "time": sa.DateTime(timezone=True),
}  # fmt: skip
# what a column that somebody else has made may be
_FITTING: dict[ColumnType, tuple[type[sa.types.TypeEngine[Any]], ...]] = {
    "int": (sa.Integer, sa.Numeric), "float": (sa.Numeric, sa.Double), "str": (sa.String,), "bool": (sa.Boolean, sa.Integer), "time": (sa.DateTime,),
}  # fmt: skip
_LEDGER = sa.Table(
    "forge_publications",
    sa.MetaData(),
    sa.Column("execution_id", sa.String(64), primary_key=True),
    sa.Column("publication", sa.String(128), primary_key=True),
    sa.Column("target_table", sa.String(128), primary_key=True),
    sa.Column("analysis", sa.Text(), nullable=False),
    sa.Column("row_count", sa.BigInteger(), nullable=False),
    sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
)


class Database:
    """One of the deployment's databases, by its name in the settings.

    Raises:
        SpecError: Its URL cannot be used, or its driver is not installed.
    """

    def __init__(self, name: str, settings: DatabaseSettings) -> None:
        self.name = name
        written = settings.url
        if written.startswith("env:"):
            variable = written.removeprefix("env:")
            if not (written := os.environ.get(variable, "")):
                raise SpecError(
                    f"The environment variable {variable} is not set, and [databases.{name}] says that it holds the URL."
                )
        try:
            self._url = DatabaseUrl(written)
            self._engine = sa.create_engine(_with_driver(written), poolclass=sa.NullPool, connect_args=_connect_args(self._url))
        except (ValueError, SQLAlchemyError, NoSuchModuleError) as error:
            raise SpecError(f"The URL of database '{name}' cannot be used.", "See [databases] in settings.toml.") from error
        except ModuleNotFoundError as error:
            raise SpecError(
                f"Database '{name}' needs the Python package '{error.name}', which is not installed.",
                "Install it beside Forge: pip install 'forge-orchestration[postgres]' for PostgreSQL.",
            ) from error
        if self._url.kind == "sqlite":
            _own_transactions(self._engine)

    def add(
        self, table_name: str, columns: Mapping[str, Column], unique: tuple[str, ...], frames: Iterable[pd.DataFrame], *, execution_id: str,
        publication: str, analysis: str,
    ) -> int:  # fmt: skip
        """Add an execution's rows to a table, all or none; returns how many are there. If they are there already, nothing is done.

        The table is made if it is not there: the columns, and before them `execution_id`.

        Raises:
            SpecError: The table has other columns, refuses the rows, or may not be written.
            BackendUnavailableError: The database does not answer, is busy, or has gone away in the middle; nothing was added.
        """
        key = {"execution_id": execution_id, "publication": publication, "target_table": table_name}
        try:
            with self._engine.begin() as connection:
                self._make(connection, _LEDGER)
                there = connection.execute(sa.select(_LEDGER.c.row_count).filter_by(**key)).scalar()
                if there is not None:
                    return int(there)
                try:
                    connection.execute(
                        _LEDGER.insert().values(**key, analysis=analysis, row_count=0, published_at=datetime.now(UTC))
                    )
                except IntegrityError as error:
                    raise BackendUnavailableError(f"Another process publishes the same to '{self.name}' now.") from error
                table = self._table(connection, table_name, columns)
                count = 0
                for frame in frames:
                    count += len(frame)
                    if rows := _rows(frame, execution_id):
                        connection.execute(table.insert(), rows)
                if unique:
                    self._check_unique(connection, table, unique, execution_id)
                connection.execute(_LEDGER.update().filter_by(**key).values(row_count=count))
            return count
        except (OperationalError, InterfaceError) as error:
            raise self._unavailable(error) from error
        except SQLAlchemyError as error:
            raise SpecError(f"Table '{table_name}' of database '{self.name}' refuses the rows: {self._said(error)}.") from error

    @property
    def sqlite_path(self) -> Path | None:
        """Of an SQLite database its file."""
        return Path(self._engine.url.database) if self._url.kind == "sqlite" and self._engine.url.database else None

    def ask(self, what: str, query: str, rows: int) -> Iterator[pd.DataFrame]:
        """What a query finds, as it is at one moment, some rows at a time, at least one frame; it can change nothing.

        Args:
            what: Who asks, for people.

        Raises:
            SpecError: The query is wrong.
            BackendUnavailableError: The database does not answer.
        """
        import pandas as pd

        try:
            with self._engine.connect().execution_options(reads_only=True) as connection:
                if self._url.kind == "sqlite":
                    connection.exec_driver_sql("PRAGMA query_only = ON")
                elif self._url.kind == "postgresql":
                    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                streamed = connection.execution_options(stream_results=True, max_row_buffer=rows)
                found = streamed.execute(sa.text(query.replace(":", r"\:")))  # a colon is none of SQLAlchemy's
                names = list(found.keys())
                yield pd.DataFrame(columns=names)
                for piece in found.partitions(rows):
                    yield pd.DataFrame.from_records(list(piece), columns=names, coerce_float=False).convert_dtypes()
        except (OperationalError, InterfaceError) as error:
            if self._url.kind == "sqlite":  # a wrong query too
                raise SpecError(f"{what} cannot be taken: {self._said(error)}.") from error
            raise self._unavailable(error) from error
        except SQLAlchemyError as error:
            raise SpecError(f"{what} cannot be taken: {self._said(error)}.") from error

    def _table(self, connection: sa.Connection, name: str, columns: Mapping[str, Column]) -> sa.Table:
        """The table, made if it is not there."""
        own = sa.Column("execution_id", sa.String(64), nullable=False, index=True)
        wanted = sa.Table(name, sa.MetaData(), own, *(sa.Column(one, _TYPES[column.type], nullable=column.null) for one, column in columns.items()))  # fmt: skip
        if self._make(connection, wanted):
            return wanted
        found = {column["name"]: column for column in sa.inspect(connection).get_columns(name)}
        what = f"Table '{name}' of database '{self.name}'"
        for one in wanted.columns:
            if one.name not in found:
                raise SpecError(f"{what} has no column '{one.name}'.", "Add it, or name another table under 'publish'.")
            kind: ColumnType = columns[one.name].type if one.name in columns else "str"
            if not isinstance(found[one.name]["type"], _FITTING[kind]):
                raise SpecError(
                    f"{what} has a column '{one.name}' of type {found[one.name]['type']}, and what is published is of type {kind}.",
                    "Change one of them, or name another table under 'publish'.",
                )
        for other, column in found.items():
            if other not in wanted.columns and not column["nullable"] and column.get("default") is None:
                raise SpecError(
                    f"{what} has a column '{other}' that may not be empty, and it is not published.",
                    "Declare it, or give it a default.",
                )
        return wanted

    def _make(self, connection: sa.Connection, table: sa.Table) -> bool:
        """Make a table if it is not there; returns whether it was made."""
        if sa.inspect(connection).has_table(table.name):
            return False
        if self._url.kind == "postgresql":  # two who make the same at once fail, though each asks first
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MAKING_TABLES)))
            if sa.inspect(connection).has_table(table.name):
                return False
        table.create(connection)
        return True

    def _check_unique(self, connection: sa.Connection, table: sa.Table, unique: tuple[str, ...], execution_id: str) -> None:
        columns = [table.c[one] for one in unique]
        twice = (
            sa.select(*columns).where(table.c.execution_id == execution_id).group_by(*columns).having(sa.func.count() > 1).limit(1)
        )
        if (row := connection.execute(twice).first()) is not None:
            values = ", ".join(f"{name} {value!s:.80}" for name, value in zip(unique, row, strict=True))
            raise SpecError(
                f"What is published to '{self.name}.{table.name}' has two rows with {values}.", "See 'unique' under 'publish'."
            )

    def _unavailable(self, error: DBAPIError) -> BackendUnavailableError | SpecError:
        said = self._said(error)
        if "readonly" in said or "unable to open" in said:  # SQLite's: it will not get better by itself
            return SpecError(f"Database '{self.name}' cannot be written: {said}.", "See [databases] in settings.toml.")
        return BackendUnavailableError(
            f"Database '{self.name}' does not answer: {said}.", "Nothing was added. Try again: forge publish"
        )

    def _said(self, error: SQLAlchemyError) -> str:
        """What the database itself says, without what was sent to it, and without secrets."""
        own = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        return self._url.hidden(" ".join(str(own).split()))[:300].rstrip(".")


def _with_driver(url: str) -> str:
    """Of PostgreSQL's drivers the one that Forge's extra brings, unless the URL names another."""
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg2://{rest}" if scheme in ("postgres", "postgresql") else url


def _connect_args(url: DatabaseUrl) -> dict[str, object]:
    options: dict[str, dict[str, object]] = {"sqlite": {"timeout": _BUSY_S}, "postgresql": {"connect_timeout": 10}}
    return options.get(url.kind, {})


def _own_transactions(engine: sa.Engine) -> None:
    """Python's `sqlite3` begins none before a table is made, and takes the lock late: begin each here, as one that writes if it does."""

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reads_only") else "BEGIN IMMEDIATE")


def _rows(frame: pd.DataFrame, execution_id: str) -> list[dict[str, Any]]:
    """As the drivers want them: Python's own types, None where there is nothing."""
    values = frame.astype(object).where(frame.notna(), None)
    return [
        {"execution_id": execution_id} | dict(zip(frame.columns, row, strict=True))
        for row in values.itertuples(index=False, name=None)
    ]
