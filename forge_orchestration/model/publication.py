"""What of an analysis' outputs goes to a database or a folder of the deployment, and what has become of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from forge_orchestration.model.compiled import compiled

ColumnType = Literal["int", "float", "str", "bool", "time"]


@compiled
class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands in one column of a table.

    Attributes:
        type: `time` is a moment, UTC if it does not say otherwise.
        null: Whether there may be nothing.
        min, max: Bounds, inclusive, of numbers.
        choices: The values that there are.
    """

    type: ColumnType
    null: bool = False
    min: float | None = None
    max: float | None = None
    choices: tuple[int | float | str, ...] = ()


@compiled
class Publication(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one declared output goes: into a table, or as a file.

    Attributes:
        output: Name of the output.
        table: `DATABASE.TABLE`; the database is one of the deployment's settings.
        path: `FOLDER/PATH`; the folder is one of the deployment's settings, and the path may have `{execution_id}` and `{partition}`.
        columns: Of a table, all of them, in their order.
        unique: Columns of which no two rows of one execution have the same values.
    """

    output: str
    table: str = ""
    path: str = ""
    columns: dict[str, Column] = {}
    unique: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """Where it goes."""
        return self.table or self.path


class PublishedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of one publication.

    Attributes:
        execution_id: Whose rows they are in the table: of a reused result the execution that made it.
        rows: How many; None of a file.
        sha256: Of the output that was published.
        at: When, seconds since the epoch; None: it was not.
        error: Why it was not; empty if it was.
        transient: Whether that may be over the next time: the database did not answer.
    """

    name: str
    output: str
    target: str
    execution_id: str
    rows: int | None = None
    sha256: str = ""
    at: float | None = None
    error: str = ""
    transient: bool = False
