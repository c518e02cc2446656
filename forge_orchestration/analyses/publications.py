"""What `analysis.yaml` says of results that go to a database or a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping

from forge_orchestration.errors import SpecError
from forge_orchestration.executions.frames import ENDINGS
from forge_orchestration.model.publication import Column, Publication

_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]{0,62}"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_TABLE = re.compile(rf"{_IDENTIFIER}\.{_IDENTIFIER}")
_PATH = re.compile(r"[A-Za-z0-9_.-]+(/[^/{}\0]*(\{(execution_id|partition)\}[^/{}\0]*)*)+")
_OWN = ("execution_id", "forge_publications")


def check_publications(publications: Mapping[str, Publication], outputs: Mapping[str, str], path: str) -> None:
    """Refuse what could never be published.

    Args:
        outputs: Pattern by name of all that is declared.
        path: Where it is written.

    Raises:
        SpecError: One sentence: where, what, and what it should be.
    """
    for name, one in publications.items():
        what = f"Publication '{name[:80]}' in {path}"
        if not _NAME.fullmatch(name):
            raise SpecError(f"{what} cannot be called so.", "Use letters, digits, '_', '-' and '.'.")
        if one.output not in outputs:
            known = ", ".join(outputs) or "none"
            raise SpecError(f"{what} is of output '{one.output[:80]}', which is not declared.", f"Declared: {known}.")
        pattern = outputs[one.output]
        if any(char in pattern for char in "*?["):
            raise SpecError(
                f"{what} is of output '{one.output}', which may be several files.", "Declare the one file as an output."
            )
        if bool(one.table) == bool(one.path):
            raise SpecError(f"{what} needs a table or a path, and not both.")
        if one.path:
            _check_path(one, what)
        else:
            _check_table(one, pattern, what)


def _check_path(one: Publication, what: str) -> None:
    if not _PATH.fullmatch(one.path) or not {".", "..", ""}.isdisjoint(one.path.split("/")):
        raise SpecError(
            f"{what} has the path {one.path!r}.", "Write it as FOLDER/PATH; the path may have {execution_id} and {partition} in it."
        )
    if one.columns or one.unique:
        raise SpecError(f"{what} goes to a path, and has columns.", "Only a table has columns.")


def _check_table(one: Publication, pattern: str, what: str) -> None:
    if not _TABLE.fullmatch(one.table) or one.table.partition(".")[2].lower() in _OWN:
        raise SpecError(f"{what} has the table {one.table!r}.", "Write it as DATABASE.TABLE, of letters, digits and '_'.")
    if not pattern.endswith(ENDINGS):
        raise SpecError(f"{what} is of {pattern}, which is no table.", f"Tables end in {', '.join(ENDINGS)}.")
    if not one.columns:
        raise SpecError(f"{what} has no columns.", "Declare each: columns: {auc: {type: float, min: 0, max: 1}}.")
    for name, column in one.columns.items():
        if not re.fullmatch(_IDENTIFIER, name) or name.lower() in _OWN:
            raise SpecError(
                f"'{name[:80]}' cannot be a column of {what[0].lower()}{what[1:]}.",
                "Use letters, digits and '_'; execution_id is Forge's own.",
            )
        _check_column(name, column, what)
    for name in one.unique:
        if name not in one.columns:
            raise SpecError(
                f"{what} has the unique column '{name[:80]}', which is not declared.", f"Declared: {', '.join(one.columns)}."
            )


def _check_column(name: str, column: Column, what: str) -> None:
    bounded = column.min is not None or column.max is not None
    if bounded and column.type not in ("int", "float"):
        raise SpecError(
            f"Column '{name}' of {what[0].lower()}{what[1:]} is of type {column.type}, and has bounds.", "Only numbers have."
        )
    if column.min is not None and column.max is not None and column.min > column.max:
        raise SpecError(f"Column '{name}' of {what[0].lower()}{what[1:]} has a min above its max.")
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
    fitting = kinds.get(column.type, ())
    if not all(isinstance(choice, fitting) and not isinstance(choice, bool) for choice in column.choices):
        raise SpecError(f"Column '{name}' of {what[0].lower()}{what[1:]} has choices that are not of type {column.type}.")
