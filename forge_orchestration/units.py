"""Unit strings at the edges ("2GiB", "30min"), plain numbers inside.

Inside Forge a size is an `int` of bytes, a duration a `float` of seconds, and the name of the variable says so.
"""

from __future__ import annotations

import math
import re

from forge_orchestration.errors import SpecError

_BYTES = {
    "": 1, "B": 1,
    "K": 2**10, "KiB": 2**10, "M": 2**20, "MiB": 2**20, "G": 2**30, "GiB": 2**30, "T": 2**40, "TiB": 2**40,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MOST = 2.0**62  # what fits the kernel's counters
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def _split(value: object, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise SpecError(f"{what} must be written like {example}, not {value!r}.")
    if isinstance(value, (int, float)):
        number, scale = (float(value) if abs(value) < _MOST else math.inf), 1.0
    else:
        match = _NUMBER.fullmatch(value)
        if match is None or match[2] not in units:
            known = ", ".join(unit for unit in units if unit)
            raise SpecError(f"{what} is {value!r}, which cannot be read.", f"Write it like {example}; units: {known}.")
        number, scale = float(match[1]), units[match[2]]
    if not 0 <= number * scale < _MOST:
        raise SpecError(f"{what} is {value!r}; it must be zero or more, and less than 2^62.", f"Write it like {example}.")
    return number * scale


def parse_bytes(value: object, what: str = "size") -> int:
    """A size in bytes from `2GiB`, `500MB`, `1.5G`, or a plain number of bytes.

    Raises:
        SpecError: The value is malformed or negative; `what` names it in the sentence.
    """
    return int(_split(value, _BYTES, what, "2GiB"))


def parse_seconds(value: object, what: str = "duration") -> float:
    """A duration in seconds from `30min`, `90s`, `1.5h`, or a plain number of seconds.

    Raises:
        SpecError: The value is malformed or negative; `what` names it in the sentence.
    """
    return _split(value, _SECONDS, what, "30min")


def format_bytes(count: float) -> str:
    """`268435456` → `256.0 MiB`; below one KiB, plain bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def format_seconds(seconds: float) -> str:
    """`1800.0` → `30min`; `0.25` → `0.25s`."""
    for unit, scale in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= scale and seconds % scale == 0:
            return f"{seconds / scale:.0f}{unit}"
    return f"{seconds:.10g}s"
