"""The sum: what all executions of one parent group may use together, held by the kernel and read back.

Admission starts an execution only when its limits fit. Where that is ever wrong (a claim that was lost, page cache that
outlives its execution), this cap still stands between all executions and the rest of the host.

Under systemd each controller has a scope, and the scopes share a slice. The slice is systemd's, so it is limited through
systemd; it holds supervisors too, for which it gets an allowance.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import msgspec

from forge_orchestration.errors import HostError
from forge_orchestration.model.capacity import Capacity
from forge_orchestration.sandbox import subordinate
from forge_orchestration.sandbox.cgroups.base import CPU_PERIOD_US, page_rounded, read, write
from forge_orchestration.sandbox.cgroups.find import REMEDY, SLICE, CgroupSite

_ALLOWANCE = 1 / 16  # of a slice's memory and processes, and what is added to that: for spawners, supervisors and bubblewrap
_ALLOWANCE_BYTES = 256 * 2**20
_ALLOWANCE_PIDS = 1024
_TIMEOUT_S = 30.0
# by version: mount and file of each limit
_FILES = {
    1: {"memory": ("memory", "memory.limit_in_bytes"), "pids": ("pids", "pids.max"), "cpu": ("cpu", "cpu.cfs_quota_us")},
    2: {"memory": ("unified", "memory.max"), "pids": ("unified", "pids.max"), "cpu": ("unified", "cpu.max")},
}


class Total:
    """The cap on all executions of a site.

    Raises:
        HostError: The kernel does not count for a group what its children use.
    """

    def __init__(self, site: CgroupSite, capacity: Capacity) -> None:
        quota = math.inf if capacity.cpus is None else float(max(1000, round(capacity.cpus * CPU_PERIOD_US)))
        self._wanted = {"memory": float(page_rounded(capacity.memory_bytes)), "pids": float(capacity.pids), "cpu": quota}
        self._paths = _paths(site, f"{site.parent}/executions")
        holder = slice_of(site)
        self._slice = None if holder is None else _paths(site, holder)
        if site.version == 1:
            _count_children(self._paths["memory"].parent)

    def hold(self, *, raise_only: bool) -> None:
        """See to it that the kernel holds it, now.

        Args:
            raise_only: Leave a cap that is larger: lowering it under executions that were admitted would kill them.

        Raises:
            HostError: It could not be set, or the kernel holds another value.
        """
        try:
            for what, path in self._paths.items():
                wanted, found = self._wanted[what], _amount(path)
                if found < wanted or (found > wanted and not raise_only):
                    _set(path, wanted)
            if self._slice is not None:
                _hold_slice(self._slice, self._wanted, raise_only)
        except OSError as error:
            raise HostError(
                f"The sum of all executions cannot be limited at {error.filename or path}: {error.strerror}.", REMEDY
            ) from error


def within_what_is_above(capacity: Capacity, site: CgroupSite) -> Capacity:
    """`capacity`, or what the groups above executions have if that is less: somebody limited them, or the user's session."""
    holder = slice_of(site)
    top = Path(site.parent) if holder is None else Path(holder).parent
    above = [_paths(site, str(group)) for group in (top, *top.parents)]
    memory, pids = (
        min((_amount(paths[what]) for paths in above if paths[what].exists()), default=math.inf)  # the root of v2 has none
        for what in ("memory", "pids")
    )
    return msgspec.structs.replace(
        capacity, memory_bytes=int(min(capacity.memory_bytes, memory)), pids=int(min(capacity.pids, pids))
    )


def _paths(site: CgroupSite, group: str) -> dict[str, Path]:
    return {what: Path(site.mounts[mount], group, name) for what, (mount, name) in _FILES[site.version].items()}


def slice_of(site: CgroupSite) -> str | None:
    """The slice that the site's scope is in; None where it is in no scope."""
    above, found, _ = site.parent.rpartition(f"{SLICE}/")
    return above + SLICE if found and site.version == 2 else None


def _amount(path: Path) -> float:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 64).split()[0]
    finally:
        os.close(fd)
    return math.inf if text in (b"max", b"-1") else float(text)


def _set(path: Path, wanted: float) -> None:
    if path.name == "cpu.cfs_quota_us":
        write(path.with_name("cpu.cfs_period_us"), str(CPU_PERIOD_US))
        write(path, "-1" if wanted == math.inf else str(int(wanted)))
    else:
        text = "max" if wanted == math.inf else str(int(wanted))
        write(path, f"{text} {CPU_PERIOD_US}" if path.name == "cpu.max" else text)
    _expect(path, wanted)


def _expect(path: Path, wanted: float) -> None:
    if (found := _amount(path)) != wanted:
        raise HostError(f"The limit of all executions was set to {wanted:.0f}, but {path} says {found:.0f}.", "See: forge doctor")


def _count_children(memory: Path) -> None:
    """v1 before 5.11: a group counts what its children use only if it was told to before it had any."""
    switch = memory / "memory.use_hierarchy"
    try:
        if switch.exists() and read(switch) != "1":
            write(switch, "1")
            if read(switch) != "1":
                raise OSError("the kernel did not take it")
    except OSError as error:
        raise HostError(
            f"{memory} does not count the memory of the groups in it ({switch.name}: {error.strerror or error}).",
            "End all executions, and remove that group.",
        ) from error


def _hold_slice(paths: dict[str, Path], wanted: dict[str, float], raise_only: bool) -> None:
    allowed = {
        "memory": float(page_rounded(int(wanted["memory"] * (1 + _ALLOWANCE)) + _ALLOWANCE_BYTES)),
        "pids": float(int(wanted["pids"] * (1 + _ALLOWANCE)) + _ALLOWANCE_PIDS),
        "cpu": wanted["cpu"],
    }
    found = {what: _amount(path) for what, path in paths.items()}
    new = {what: max(found[what], amount) if raise_only else amount for what, amount in allowed.items()}
    if new == found:
        return
    set_slice_properties(
        f"MemoryMax={_or_infinity(new['memory'])}",
        f"TasksMax={_or_infinity(new['pids'])}",
        "CPUQuota=" + ("" if new["cpu"] == math.inf else f"{new['cpu'] * 100 / CPU_PERIOD_US:g}%"),
    )
    for what, path in paths.items():
        _expect(path, new[what])


def set_slice_properties(*properties: str) -> None:
    """Have systemd set properties of our slice, until the next boot.

    Raises:
        HostError: It does not.
    """
    import subprocess  # here, because it is slow to load and seldom needed

    user = () if subordinate.outside(os.geteuid()) == 0 else ("--user",)
    command = ["systemctl", *user, "set-property", "--runtime", SLICE, *properties]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.SubprocessError as error:
        raise HostError(f"systemctl cannot limit {SLICE}: {error}.", "See: forge doctor") from error
    if done.returncode != 0:
        raise HostError(f"systemctl cannot limit {SLICE}: {' '.join(done.stderr.split())[-300:]}", "See: forge doctor")


def _or_infinity(amount: float) -> str:
    return "infinity" if amount == math.inf else str(int(amount))
