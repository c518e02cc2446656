"""From what was observed to one end reason and one sentence. No I/O, so every line of the table can be tested."""

from __future__ import annotations

import signal

import msgspec

from forge_orchestration.model.limits import Limits
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.sandbox.cgroups.base import Counters
from forge_orchestration.units import format_bytes, format_seconds

_ORDER = list(EndReason)


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What is known when everything has ended.

    Attributes:
        stops: Reasons for which the supervisor itself ended the execution, with what it saw.
        exit_status: Of the command, as a shell would report it (128 + number for a signal); None if it never ended by itself.
        signal: That ended it; None if it exited.
        scratch_full: Whether the workspace was seen full.
        scratch_peak_bytes, scratch_peak_files: The most that was seen in it.
        files_limit: How many files it could hold, as read back.
        unreported: Declared checks of which nothing was said.
        missing: Declared outputs that are not there; rejected: how many entries could not be kept, and the first of them.
    """

    limits: Limits
    stops: dict[EndReason, str] = {}
    exit_status: int | None = None
    signal: int | None = None
    counters: Counters = Counters()
    wall_s: float = 0.0
    scratch_full: bool = False
    scratch_peak_bytes: int = 0
    scratch_peak_files: int = 0
    files_limit: int = 0
    unreported: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()


def socket_memory_sentence(limits: Limits) -> str:
    """For an execution whose sockets hold much more than the kernel was to give them."""
    return (
        f"Stopped: its sockets hold more memory than goes with its memory limit of {format_bytes(limits.memory_bytes)}. "
        "Keep fewer connections open, and read what was sent."
    )


def judge(seen: Observed) -> tuple[EndReason, str]:
    """The first end reason of the table that holds, and the sentence for it."""
    holding = dict(seen.stops)
    limits, counters = seen.limits, seen.counters
    well = seen.exit_status == 0
    peak = counters.peak_memory_bytes.value if counters.peak_memory_bytes else 0
    if counters.oom_kills and counters.memory_limit_hit:
        holding[EndReason.MEMORY] = (
            f"Stopped: the analysis needed more than its memory limit of {format_bytes(limits.memory_bytes)} "
            f"(measured peak {format_bytes(peak)}). Raise the memory limit, or work on smaller pieces."
        )
    elif counters.oom_kills:
        holding[EndReason.HOST_PRESSURE] = (
            f"The host, or what Forge may use of it, ran out of memory, and the analysis was ended at {format_bytes(peak)} "
            f"of its own limit of {format_bytes(limits.memory_bytes)}: run it again when the host is less busy."
        )
    highest = counters.peak_pids
    if counters.pids_refused and not well and highest is not None and highest.value < limits.pids:
        holding.setdefault(
            EndReason.HOST_PRESSURE,
            f"The host, or what Forge may use of it, ran out of processes while the analysis had at most {highest.value:.0f} "
            f"of its own limit of {limits.pids}: run it again when the host is less busy.",
        )
    elif counters.pids_refused and not well:
        holding.setdefault(EndReason.PIDS, "")
        holding[EndReason.PIDS] = (
            f"Stopped: the analysis wanted more than its limit of {limits.pids} processes and threads "
            f"(the kernel refused {counters.pids_refused} more). Raise the pids limit, or start fewer."
        )
    # a workspace that is only measured can be left too full by a program that ended well; the kernel's cannot
    if (seen.scratch_full and not well) or seen.scratch_peak_bytes > limits.scratch_bytes:
        holding[EndReason.SCRATCH] = (
            f"Stopped: the analysis used up its limit of {seen.files_limit} files in scratch and outputs "
            f"(measured {seen.scratch_peak_files}). Raise the files limit, or write fewer and larger files."
            if seen.files_limit and seen.scratch_peak_files >= seen.files_limit
            else f"Stopped: the analysis filled its scratch and outputs limit of {format_bytes(limits.scratch_bytes)} "
            f"(measured {format_bytes(seen.scratch_peak_bytes)}). Raise the scratch limit, or write less."
        )
    if well and seen.missing:
        holding.setdefault(
            EndReason.OUTPUT_REJECTED,
            f"The analysis ended without writing its declared output {_listed(seen.missing)}: write it beneath $FORGE_OUTPUTS.",
        )
    if well and seen.unreported:
        holding.setdefault(
            EndReason.OUTPUT_REJECTED,
            f"The analysis ended without reporting its declared check {_listed(seen.unreported)}: write it to $FORGE_MESSAGES.",
        )
    if well and seen.rejected:
        holding.setdefault(
            EndReason.OUTPUT_REJECTED,
            f"{len(seen.rejected)} of what the analysis left in its outputs cannot be kept: {_listed(seen.rejected)}.",
        )
    if seen.signal is not None:
        holding[EndReason.SIGNALED] = f"The analysis was ended by signal {seen.signal} ({_signal_name(seen.signal)})."
    elif seen.exit_status:
        code = seen.exit_status
        holding[EndReason.NONZERO_EXIT] = f"The analysis exited with status {code}{_shell_meaning(code)}; its log says why."
    if well:
        holding[EndReason.COMPLETED] = f"Completed in {format_seconds(round(seen.wall_s, 3))}."
    if not holding:
        holding[EndReason.EXECUTOR_ERROR] = "The command's exit status was lost."
    reason = min(holding, key=_ORDER.index)
    return reason, holding[reason]


def wall_time_sentence(limits: Limits, wall_s: float) -> str:
    """For an execution that was still running at its wall limit."""
    return (
        f"Stopped: the analysis ran longer than its wall time limit of {format_seconds(limits.wall_time_s)} "
        f"(measured {wall_s:.1f} s; it had {format_seconds(limits.grace_s)} of grace). Raise the wall time limit, or do less at once."
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shell_meaning(code: int) -> str:
    if 128 < code <= 128 + 64:
        return f" (a shell's way to say that a program was ended by signal {code - 128}, {_signal_name(code - 128)})"
    return {126: " (the command cannot be executed)", 127: " (the command was not found)"}.get(code, "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
