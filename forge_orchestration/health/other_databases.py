"""Databases of any other kind, by SQLAlchemy: whether they answer, and whether a row of each table can be read.

That proves no more than it says. Damage elsewhere is found by the database's own tools, and none of these findings says `corrupt`.
"""

from __future__ import annotations

import threading

from forge_orchestration.model.database_url import DatabaseUrl
from forge_orchestration.model.health import CheckResult

_MOST_TABLES = 100
_TIMEOUT_S = 60.0
_SUSPECT = "suspect, not known to be corrupt"


def other_checks(name: str, url: DatabaseUrl) -> list[CheckResult]:
    """The checks of one database, which nothing is written to."""
    results: list[CheckResult] = []
    # a driver may wait for ever, and there is no one way to tell all of them not to
    thread = threading.Thread(target=_look, args=(name, url, results), name=f"forge database {name}", daemon=True)
    thread.start()
    thread.join(_TIMEOUT_S)
    if thread.is_alive():
        return [_failed(name, "connection", f"does not answer within {_TIMEOUT_S:.0f} s: {_SUSPECT}", "Is it running?")]
    return results


def _look(name: str, url: DatabaseUrl, results: list[CheckResult]) -> None:
    try:
        import sqlalchemy
    except ImportError:  # it comes with Dagster
        results.append(_failed(name, "connection", "cannot be looked at: SQLAlchemy is not installed", "pip install sqlalchemy"))
        return
    try:
        engine = sqlalchemy.create_engine(url.whole, poolclass=sqlalchemy.pool.NullPool)
    except ModuleNotFoundError as error:
        remedy = f"Install it beside Forge, or name another in the URL, such as {url.kind}+DRIVER://"
        results.append(_failed(name, "connection", f"cannot be looked at: its driver {error.name} is not installed", remedy))
        return
    except Exception as error:  # a dialect may raise anything about a URL
        results.append(_failed(name, "connection", f"cannot be looked at ({_said(url, error)}): {_SUSPECT}", "Correct its URL."))
        return
    try:
        with engine.connect() as connection:
            # not `SELECT 1`: some dialects have no query without a table
            connection.execute(sqlalchemy.select(sqlalchemy.literal(1)))
            results.append(CheckResult(name="connection", target=name, passed=True, finding=f"{url.kind} answers"))
            try:
                tables = sorted(sqlalchemy.inspect(connection).get_table_names())
            except NotImplementedError:
                return
            for table in tables[:_MOST_TABLES]:
                read = sqlalchemy.select(sqlalchemy.text("*")).select_from(sqlalchemy.table(table)).limit(1)
                connection.execute(read).first()
    except Exception as error:  # and so may a driver
        said = _said(url, error)
        if results:
            finding, remedy = f"cannot be read ({said}): {_SUSPECT}", "Look at it with its own tools, and at its log."
            results.append(_failed(name, "read", finding, remedy))
        else:
            results.append(_failed(name, "connection", f"does not answer ({said}): {_SUSPECT}", "Is it running?"))
        return
    read_of = f"of {len(tables)} tables" if len(tables) <= _MOST_TABLES else f"of the first {_MOST_TABLES} of {len(tables)} tables"
    results.append(
        CheckResult(
            name="read", target=name, passed=True, finding=f"a row of each {read_of} was read; that does not prove that the rest is whole"
        )
    )  # fmt: skip


def _failed(name: str, check: str, finding: str, remedy: str) -> CheckResult:
    return CheckResult(name=check, target=name, passed=False, severity="warning", finding=finding, remedy=remedy)


def _said(url: DatabaseUrl, error: Exception) -> str:
    """The driver's own words, on one line, without SQLAlchemy's advice and without a password."""
    words = str(getattr(error, "orig", None) or error).split("\n(Background on this error")[0]
    return url.hidden(" ".join(words.split()))[:300] or type(error).__name__
