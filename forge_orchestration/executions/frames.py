"""Tables that an analysis has written, read and checked by trusted code, a piece at a time: what is in them may be anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_orchestration.errors import SpecError
from forge_orchestration.model.publication import Column, ColumnType

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa

ROWS = 20_000
"""In one piece."""
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
"""Of files that can be read as tables."""
_TYPES: dict[ColumnType, Any] = {
    "int": "Int64",
    "float": "Float64",
    "str": "string",
    "bool": "boolean",
    "time": "datetime64[us, UTC]",
}
_TRUTH = {"true": True, "false": False, "1": True, "0": False}
_SHOWN_CHARS = 80
_UNFIT = (ValueError, TypeError, OverflowError, KeyError)


def checked_frames(
    path: Path, name: str, columns: Mapping[str, Column], unique: tuple[str, ...], max_rows: int
) -> Iterator[pd.DataFrame]:
    """The rows of a file, some at a time, as the columns say; missing values are `pandas.NA`.

    Args:
        path: Of a CSV, TSV, JSON lines or Parquet file.
        name: Of the file, for people.
        unique: Looked at within each piece; who puts the pieces together looks at the whole.
        max_rows: More are refused.

    Raises:
        SpecError: What the first row is that does not fit, and why; or the file is no table.
    """
    import pandera.errors
    import pyarrow as arrow

    schema = _schema(columns, unique)
    before = 0
    try:
        for frame in _frames(path, columns):
            if before + len(frame) > max_rows:
                raise SpecError(f"{name} has more than {max_rows} rows.", "See [publication] max_rows in settings.toml.")
            try:
                yield schema.validate(_converted(frame, columns), lazy=True)
            except _Misfit as error:
                raise SpecError(f"{name} does not fit its schema: {error.at(before)}.") from None
            except pandera.errors.SchemaErrors as error:
                raise SpecError(f"{name} does not fit its schema: {_first(error.failure_cases, before)}.") from None
            before += len(frame)
    except (ValueError, OSError, arrow.ArrowException) as error:  # pandas' own errors are ValueErrors
        raise SpecError(f"{name} cannot be read as a table: {' '.join(str(error).split())[:300]}.") from error


def _frames(path: Path, columns: Mapping[str, Column]) -> Iterator[pd.DataFrame]:
    import pandas as pd

    if path.suffix == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS):
                yield batch.to_pandas(types_mapper=pd.ArrowDtype)
    elif path.suffix == ".jsonl":
        with pd.read_json(path, lines=True, chunksize=ROWS, dtype=False, encoding="utf-8") as pieces:
            yield from pieces
    else:
        separator = _SEPARATORS[path.suffix]
        # as text: what a column holds is for the schema to say, and pandas' guesses depend on what else is in the file
        options: dict[str, Any] = {"dtype": "string", "keep_default_na": False, "na_values": [""], "encoding": "utf-8"}
        with pd.read_csv(path, sep=separator, chunksize=ROWS, **options) as pieces:
            for piece in pieces:
                if not isinstance(piece.index, pd.RangeIndex):
                    raise ValueError("its rows have more fields than its first line")
                yield piece


class _Misfit(Exception):
    """A value is not of its column's type."""

    def __init__(self, column: str, row: int, value: object, kind: str) -> None:
        self._column, self._row, self._value, self._kind = column, row, value, kind

    def at(self, before: int) -> str:
        """The same as people say it; `before`: rows of earlier pieces."""
        return f"column '{self._column}' of row {before + self._row + 1} is '{self._value!s:.{_SHOWN_CHARS}}', and must be of type {self._kind}"


def _converted(frame: pd.DataFrame, columns: Mapping[str, Column]) -> pd.DataFrame:
    """The same with the types that the columns have; a column that is not declared stays as it is."""
    frame = frame.reset_index(drop=True)
    for name in frame.columns.intersection(list(columns)):
        kind = columns[name].type
        try:
            frame[name] = _as_type(frame[name], kind)
        except _UNFIT:
            for row in range(len(frame)):  # which one it is pandas does not say
                try:
                    _as_type(frame[name].iloc[[row]], kind)
                except _UNFIT:
                    raise _Misfit(name, row, frame[name].iloc[row], kind) from None
            raise
    return frame


def _as_type(series: Any, kind: ColumnType) -> Any:
    import pandas as pd

    if kind == "time":
        series = pd.to_datetime(series, utc=True, format="ISO8601")
    if kind == "bool":
        series = series.map(lambda value: _TRUTH[value.lower()] if isinstance(value, str) else value)
    return series.astype(_TYPES[kind])


def _schema(columns: Mapping[str, Column], unique: tuple[str, ...]) -> pa.DataFrameSchema:
    import pandera.pandas as pa

    found = {}
    for name, column in columns.items():
        checks = []
        if column.min is not None:
            checks.append(pa.Check.ge(column.min, error=f"at least {column.min:g}"))
        if column.max is not None:
            checks.append(pa.Check.le(column.max, error=f"at most {column.max:g}"))
        if column.choices:
            checks.append(pa.Check.isin(column.choices, error=f"one of {', '.join(map(str, column.choices))}"))
        found[name] = pa.Column(None, checks, nullable=column.null)
    return pa.DataFrameSchema(found, strict=True, unique=list(unique) or None, report_duplicates="exclude_first")


def _first(cases: pd.DataFrame, before: int) -> str:
    """The first of the failures: those of the columns, then those of the rows in their order."""
    of_columns = cases[cases["index"].isna()]
    case = (of_columns if len(of_columns) else cases.sort_values("index", kind="stable")).iloc[0]
    column, check, value = str(case["column"]), str(case["check"]), case["failure_case"]
    shown = f"{value!s:.{_SHOWN_CHARS}}"
    if check in ("column_in_schema", "column_in_dataframe"):
        return f"column '{shown}' is {'not declared' if check == 'column_in_schema' else 'missing'}"
    row = before + int(case["index"]) + 1
    if check == "multiple_fields_uniqueness":
        return f"row {row} is the second with the same values of its unique columns"
    if check == "not_nullable":
        return f"column '{column}' of row {row} is empty"
    return f"column '{column}' of row {row} is '{shown}', and must be {check}"
