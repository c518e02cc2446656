"""Label values. Names of analyses are anybody's words: they are cut, cleared of what is not printable, and no more than so many.

A series that comes and goes breaks counters, so which names are told apart must not change: it is the first that there were.
"""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "(other)"
_LONGEST = 120


def clean(text: str) -> str:
    """`text` as a label value; quotes, backslashes and line ends are escaped by whoever writes it."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:_LONGEST])


class Names:
    """The values that one label may have."""

    def __init__(self, first: Iterable[str]) -> None:
        self._known = frozenset(first)

    def __call__(self, name: str) -> str:
        """The label value for `name`."""
        return clean(name) if name in self._known or not name else OTHER
