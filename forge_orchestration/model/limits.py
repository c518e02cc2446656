"""Limits: what an execution may use, and how they are written down."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from forge_orchestration.errors import SpecError
from forge_orchestration.units import format_bytes, format_seconds, parse_bytes, parse_seconds


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hard limits on one execution's whole process tree; the values here are Forge's built-in defaults.

    Attributes:
        memory_bytes: Heap, page cache, tmpfs and `/dev/shm` of all processes together.
        cpus: Processor time a second of wall time, in cores.
        pids: Processes and threads at one moment, the sandbox's own two included.
        wall_time_s: From the start of the command to SIGTERM.
        grace_s: From SIGTERM to SIGKILL.
        scratch_bytes: Scratch, `/tmp`, outputs and checkpoint together.
        log_bytes: Kept of standard output, and of standard error; the rest is dropped and counted.
        files: Files and folders in scratch, `/tmp`, outputs and checkpoint together.
        open_files: Descriptors that each process may have open.
    """

    memory_bytes: int = 2 * 2**30
    cpus: float = 1.0
    pids: int = 100
    wall_time_s: float = 1800.0
    grace_s: float = 5.0
    scratch_bytes: int = 2 * 2**30
    log_bytes: int = 64 * 2**20
    files: int = 131_072
    open_files: int = 4096


# key as a person writes it → (field, parser, smallest value that can work at all)
_BYTE_KEYS = {"memory": ("memory_bytes", 8 * 2**20), "scratch": ("scratch_bytes", 2**20), "log": ("log_bytes", 2**10)}
_SECOND_KEYS = {"wall_time": ("wall_time_s", 0.1), "grace": ("grace_s", 0.0)}
_COUNT_KEYS = {"pids": 4, "files": 64, "open_files": 16}
LIMIT_KEYS = ("memory", "cpus", "pids", "wall_time", "grace", "scratch", "log", "files", "open_files")


def updated_limits(base: Limits, changes: Mapping[str, object], where: str) -> Limits:
    """`base` with the limits that a person wrote, such as `{"memory": "2GiB", "wall_time": "30min"}`.

    Args:
        base: The limits that hold for what `changes` does not name.
        changes: Unit strings or plain numbers by the keys of `LIMIT_KEYS`; None leaves a limit as it is.
        where: Who wrote them, for the sentence ("analysis.yaml of pbmc_clusters", "the command line").

    Raises:
        SpecError: An unknown key, a malformed, negative or impossibly small value.
    """
    fields: dict[str, float | int] = {}
    for key, value in changes.items():
        if value is None:
            continue
        what = f"Limit '{key}' in {where}"
        if key in _BYTE_KEYS:
            field, least = _BYTE_KEYS[key]
            size = parse_bytes(value, what)
            if size < least:
                raise SpecError(f"{what} is {value!r}; nothing runs in less than {format_bytes(least)}.")
            fields[field] = size
        elif key in _SECOND_KEYS:
            field, least_s = _SECOND_KEYS[key]
            seconds = parse_seconds(value, what)
            if seconds < least_s:
                raise SpecError(f"{what} is {value!r}; the least is {least_s:g}s.")
            fields[field] = seconds
        elif key == "cpus":
            fields["cpus"] = _cpus(value, what)
        elif key in _COUNT_KEYS:
            least_count = _COUNT_KEYS[key]
            if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,10}\s*", value):
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int) or not least_count <= value < 2**31:
                raise SpecError(f"{what} is {value!r:.80}; it must be a whole number of at least {least_count}.")
            fields[key] = value
        else:
            raise SpecError(f"Unknown limit '{key}' in {where}.", f"The limits are: {', '.join(LIMIT_KEYS)}.")
    return msgspec.structs.replace(base, **fields)


def _cpus(value: object, what: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        cpus = float(value)
    except (ValueError, OverflowError):
        raise SpecError(f"{what} is {value!r:.80}; it must be a number of cores like 1 or 0.5.") from None
    if not 0.01 <= cpus < 10**6:
        raise SpecError(f"{what} is {value!r}; it must be a number of cores of at least 0.01.")
    return cpus


def check_limits(limits: Limits, maximum: Limits) -> None:
    """Refuse limits above what the deployment allows.

    Raises:
        SpecError: Names the limit, what was asked and what is allowed.
    """
    for field, show in (
        ("memory_bytes", format_bytes), ("cpus", "{:g}".format), ("pids", "{:d}".format), ("wall_time_s", format_seconds),
        ("grace_s", format_seconds), ("scratch_bytes", format_bytes), ("log_bytes", format_bytes),
        ("files", "{:d}".format), ("open_files", "{:d}".format),
    ):  # fmt: skip
        asked, allowed = getattr(limits, field), getattr(maximum, field)
        if asked > allowed:
            key = field.removesuffix("_bytes").removesuffix("_s")
            raise SpecError(
                f"Limit '{key}' is {show(asked)}, more than the {show(allowed)} that this deployment allows.",
                "Ask for less, or raise it under [maximum] in settings.toml.",
            )


def limits_as_written(limits: Limits) -> dict[str, object]:
    """The inverse of `updated_limits`: unit strings by key, as `analysis.yaml` and op config show them."""
    return {
        "memory": _whole(limits.memory_bytes),
        "cpus": limits.cpus,
        "pids": limits.pids,
        "wall_time": format_seconds(limits.wall_time_s),
        "grace": format_seconds(limits.grace_s),
        "scratch": _whole(limits.scratch_bytes),
        "log": _whole(limits.log_bytes),
        "files": limits.files,
        "open_files": limits.open_files,
    }


def _whole(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale and count % scale == 0:
            return f"{count // scale}{unit}"
    return str(count)
