"""The parts that an analysis is cut into: what `partitions` in `analysis.yaml` may say, and what a key of one may be."""

from __future__ import annotations

import contextlib
from datetime import datetime

from forge_orchestration.errors import SpecError
from forge_orchestration.model.spec import AnalysisDefinition, Partitions

PLACE = "{partition}"
"""Where an input's path has the key."""

WINDOWS = {"hour": "%Y-%m-%d-%H:%M", "day": "%Y-%m-%d", "week": "%Y-%m-%d", "month": "%Y-%m-%d"}
"""How Dagster writes a window of time, by its length."""

_MOST_CHARS = 250
_HINT = "Write it as {keys: [a, b]}, {every: day, start: 2026-01-01} or {dynamic: NAME}."


def check_partitions(partitions: Partitions, where: str) -> None:
    """Refuse what Dagster would not take.

    Raises:
        SpecError: One sentence: where, what, and what it should be.
    """
    what = f"'partitions' in {where}"
    if sum(map(bool, (partitions.keys, partitions.every, partitions.dynamic))) != 1:
        raise SpecError(f"{what} is not exactly one of keys, every and dynamic.", _HINT)
    for key in partitions.keys or filter(None, [partitions.dynamic]):
        _check_text(key, what)
    if len(set(partitions.keys)) != len(partitions.keys):
        raise SpecError(f"{what} names a key twice.")
    if bool(partitions.every) != bool(partitions.start):
        raise SpecError(f"{what} has only one of every and start.", _HINT)
    if partitions.every and partitions.every not in WINDOWS:
        raise SpecError(f"'every: {partitions.every}' of {what} is no window.", f"There are: {', '.join(WINDOWS)}.")
    if partitions.per_run is not None and partitions.per_run < 1:
        raise SpecError(f"'per_run' of {what} is {partitions.per_run}; it must be at least 1.")


def checked_partition(definition: AnalysisDefinition, key: str | None) -> str | None:
    """The key of a request.

    Raises:
        SpecError: The analysis has parts and none is named, it has none and one is, or there is no such part.
    """
    partitions, name = definition.partitions, definition.name
    if partitions is None:
        if key is not None and not definition.function:  # those of a function are Dagster's to know
            raise SpecError(
                f"Analysis '{name}' has no partitions, and the request names one.", "Declare them in its analysis.yaml."
            )
        return key
    if key is None:
        raise SpecError(f"Analysis '{name}' has partitions, and the request names none.", f"Name one: {_examples(partitions)}.")
    _check_text(key, f"The partition of '{name}'")
    if partitions.keys and key not in partitions.keys:
        raise SpecError(f"Analysis '{name}' has no partition '{key}'.", f"Its partitions: {_examples(partitions)}.")
    if partitions.every:
        moment = _moment(key, WINDOWS[partitions.every], f"The partition of '{name}'")
        assert partitions.start is not None
        if moment.date() < partitions.start or not _begins(moment, partitions.every):
            raise SpecError(
                f"Partition '{key}' of analysis '{name}' is not the beginning of one of its windows.",
                f"They are every {partitions.every} from {partitions.start} on.",
            )
    return key


def partition_path(path: str, key: str | None, name: str) -> str:
    """The path of input `name`, with the key where it has a place for it.

    Raises:
        SpecError: The key could lead elsewhere.
    """
    if PLACE not in path:
        return path
    if key is None:
        raise SpecError(f"Input '{name}' ({path}) wants a partition, and the analysis has none.", "Declare partitions.")
    if "/" in key or key.startswith("."):
        raise SpecError(
            f"Partition '{key}' cannot be part of the path of input '{name}'.", "It may not have '/' nor begin with '.'."
        )
    return path.replace(PLACE, key)


def _check_text(key: str, what: str) -> None:
    if not key or len(key) > _MOST_CHARS or not key.isprintable() or "..." in key:
        raise SpecError(
            f"{what} has the key {key[:80]!r}.", f"A key is printable text of at most {_MOST_CHARS} characters, without '...'."
        )


def _moment(text: str, form: str, what: str) -> datetime:
    with contextlib.suppress(ValueError):
        moment = datetime.strptime(text, form)
        if moment.strftime(form) == text:  # else it would be a second key of the same window
            return moment
    raise SpecError(f"{what} is '{text[:80]}'.", f"Write it as {datetime(2026, 1, 1).strftime(form)}.")


def _begins(moment: datetime, every: str) -> bool:
    """Whether a window begins then: months with their first day, weeks with Sunday, as Dagster has them."""
    return {"month": moment.day == 1, "week": moment.isoweekday() == 7}.get(every, moment.minute == 0)


def _examples(partitions: Partitions) -> str:
    if partitions.keys:
        shown = partitions.keys[:10]
        return ", ".join(shown) + (f" and {len(partitions.keys) - len(shown)} more" if len(shown) < len(partitions.keys) else "")
    if partitions.every:
        return f"every {partitions.every} from {partitions.start} on"
    return f"one of the set '{partitions.dynamic}'"
