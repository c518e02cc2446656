"""Capacity: what a deployment gives to all executions together, and how it is written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from forge_orchestration.errors import SpecError
from forge_orchestration.model.limits import Limits, updated_limits
from forge_orchestration.units import format_bytes


class Capacity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most that the limits of all executions may add up to; None: not counted.

    Attributes:
        memory_bytes: Of their memory limits.
        pids: Of their process limits.
        scratch_bytes: Of their scratch limits.
        cpus: Of their processor limits, in cores.
        executions: How many there may be at one time.
    """

    memory_bytes: int
    pids: int
    scratch_bytes: int | None = None
    cpus: float | None = None
    executions: int | None = None


CAPACITY_KEYS = ("memory", "cpus", "pids", "scratch", "executions")
# field of both `Capacity` and `Limits` → how an amount of it is written, and of what
COUNTED: dict[str, tuple[Callable[[float], str], str]] = {
    "memory_bytes": (format_bytes, "memory"),
    "pids": ("{:.0f}".format, "processes"),
    "scratch_bytes": (format_bytes, "scratch"),
    "cpus": ("{:g}".format, "cores"),
}


def updated_capacity(base: Capacity, changes: Mapping[str, object], where: str) -> Capacity:
    """`base` with what a person wrote, such as `{"memory": "16GiB", "executions": 8}`.

    Raises:
        SpecError: An unknown key, a malformed or impossibly small value.
    """
    for key in changes:
        if key not in CAPACITY_KEYS:
            raise SpecError(f"Unknown key '{key}' in {where}.", f"The keys are: {', '.join(CAPACITY_KEYS)}.")
    limits = updated_limits(Limits(), {key: value for key, value in changes.items() if key != "executions"}, where)
    written = {field: getattr(limits, field) for field in COUNTED if field.removesuffix("_bytes") in changes}
    if "executions" in changes:
        most = changes["executions"]
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most < 2**31:
            raise SpecError(f"'executions' in {where} is {most!r:.80}; it must be a whole number of at least 1.")
        written["executions"] = most
    return msgspec.structs.replace(base, **written)


def check_capacity(limits: Limits, capacity: Capacity) -> None:
    """Refuse limits that do not fit even when nothing else runs.

    Raises:
        SpecError: Names the limit, what was asked, and what there is.
    """
    for field, (show, noun) in COUNTED.items():
        asked, there = getattr(limits, field), getattr(capacity, field)
        if there is not None and asked > there:
            key = field.removesuffix("_bytes")
            raise SpecError(
                f"Limit '{key}' asks for {show(asked)} {noun}, and all executions together may use {show(there)} here: it can never start.",
                "Ask for less, or raise it under [capacity] in settings.toml.",
            )
