"""cgroup v1, or the controllers of a hybrid host: a folder a controller, all under one name of ours."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from forge_orchestration.errors import SandboxError
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.record import Enforced, Measured
from forge_orchestration.sandbox.cgroups.base import (
    CPU_PERIOD_US,
    Cgroup,
    Counters,
    Refusals,
    expect,
    keyed,
    kill_pids,
    page_rounded,
    read,
    write,
)  # fmt: skip
from forge_orchestration.sandbox.cgroups.mounts import cgroup_mounts

_SOCKET_SHARE, _LEAST_SOCKET_BYTES = 16, 2**20
_SOCKETS = "memory.kmem.tcp.usage_in_bytes"
# not "cgroup.procs": a single thread that moves itself needs no lock that waits for every processor (10 ms a controller)
JOIN_FILE = "tasks"
CONTROLLERS = ("freezer", "memory", "cpu", "cpuacct", "pids")


class CgroupV1(Cgroup):
    """One execution's groups.

    Args:
        mounts: Mount point of each of `CONTROLLERS`.
        name: The group beneath them, for example `forge/executions/ID`.
    """

    kind = "v1"
    join_file = JOIN_FILE

    def __init__(self, mounts: Mapping[str, Path], name: str) -> None:
        super().__init__()
        self._folder = {controller: mounts[controller] / name for controller in CONTROLLERS}
        self.name = name
        # cpu and cpuacct are often one mount: one folder then
        self._paths = list(dict.fromkeys(self._folder.values()))
        self._here: int | None = None  # event descriptors, and how often each has told of the want of memory
        self._above: int | None = None
        self._told_here = self._told_above = 0
        self._socket_bytes = 0

    @property
    def paths(self) -> list[Path]:
        return self._paths

    def create(self) -> None:
        for path in self._paths:
            path.mkdir(parents=True)

    def set_limits(self, limits: Limits) -> dict[str, Enforced]:
        memory, cpu, pids = self._folder["memory"], self._folder["cpu"], self._folder["pids"]
        self._above, self._here = _out_of_memory_events(memory.parent), _out_of_memory_events(memory)
        size = page_rounded(limits.memory_bytes)
        write(memory / "memory.limit_in_bytes", str(size))
        with_swap = memory / "memory.memsw.limit_in_bytes"
        if with_swap.exists():
            write(with_swap, str(size))
            expect("memory and swap", with_swap, size, int(read(with_swap)))
        elif (swappiness := memory / "memory.swappiness").exists():
            write(swappiness, "0")
            expect("swappiness", swappiness, 0, int(read(swappiness)))
        if (sockets := memory / "memory.kmem.tcp.limit_in_bytes").exists():
            # counted apart on v1, and only if there is a limit; past it they become slow and then refuse, but for many small ones
            self._socket_bytes = page_rounded(max(_LEAST_SOCKET_BYTES, size // _SOCKET_SHARE))
            write(sockets, str(self._socket_bytes))
            expect("socket memory", sockets, self._socket_bytes, int(read(sockets)))
        write(cpu / "cpu.cfs_period_us", str(CPU_PERIOD_US))
        write(cpu / "cpu.cfs_quota_us", str(max(1000, round(limits.cpus * CPU_PERIOD_US))))
        write(pids / "pids.max", str(limits.pids))
        quota, period = int(read(cpu / "cpu.cfs_quota_us")), int(read(cpu / "cpu.cfs_period_us"))
        if quota <= 0:
            raise SandboxError(f"The processor limit was set, but {cpu}/cpu.cfs_quota_us says {quota}.")
        limit, most = memory / "memory.limit_in_bytes", pids / "pids.max"
        return {
            "memory_bytes": expect("memory", limit, size, int(read(limit))),
            "cpus": expect("processor", cpu / "cpu.cfs_quota_us", limits.cpus, quota / period),
            "pids": expect("process", most, limits.pids, int(read(most).replace("max", "-1"))),
        }

    def membership(self) -> set[str]:
        return {f"{controller}:/{self.name}" for controller in CONTROLLERS}

    def watch_out_of_memory(self) -> int | None:
        # v1 kills one process and lets the rest go on, half dead: the supervisor hears of it here and ends them
        return self._here

    def refusals(self) -> Refusals:
        memory, pids = self._folder["memory"], self._folder["pids"]
        # the kernel tells a group of its own want and of that of every group above it: what is told here and not above is its own
        self._told_here += _count(self._here)
        self._told_above += _count(self._above)
        own_limit = self._told_here > self._told_above
        kills = keyed(read(memory / "memory.oom_control")).get("oom_kill", 0)
        refused = keyed(read(pids / "pids.events")).get("max", 0)
        if self.holds_container:
            kills += self._beneath(memory / "memory.oom_control", "oom_kill", at_least=int(own_limit))
            refused += self._beneath(pids / "pids.events", "max")
        over = int(read(memory / _SOCKETS)) - 2 * self._socket_bytes if self._socket_bytes else 0
        return Refusals(oom_kills=kills, memory_limit_hit=own_limit, pids_refused=refused, socket_bytes_over=max(0, over))

    def counters(self) -> Counters:
        user, system = _cpu_seconds(self._folder["cpuacct"])
        peak, peak_pids = self._folder["memory"] / "memory.max_usage_in_bytes", self._folder["pids"] / "pids.peak"
        return Counters(
            **msgspec.structs.asdict(self.refusals()),
            cpu_user_s=user,
            cpu_system_s=system,
            peak_memory_bytes=Measured(value=int(read(peak)), source=str(peak)),
            peak_pids=Measured(value=int(read(peak_pids)), source=str(peak_pids)) if peak_pids.exists() else None,
        )

    def remove(self, timeout_s: float = 5.0) -> bool:
        removed = super().remove(timeout_s)
        if self.holds_container:  # for which its engine has made groups in every hierarchy
            legacy, unified = cgroup_mounts()
            for mount in {*legacy.values(), *([unified] if unified else [])}:
                with contextlib.suppress(OSError):
                    os.rmdir(f"{mount}/{self.name}")
        return removed

    def kill(self) -> None:
        freezer = self._folder["freezer"] / "freezer.state"
        # a frozen process cannot fork: list, kill, thaw, and nothing got away
        write(freezer, "FROZEN")
        try:
            deadline = time.monotonic() + 1.0
            while read(freezer) == "FREEZING" and time.monotonic() < deadline:
                time.sleep(0.0005)
            kill_pids(self.pids())
        finally:
            write(freezer, "THAWED")


def _out_of_memory_events(memory: Path) -> int:
    """A descriptor that counts how often the kernel looked for something to kill in `memory` or in a group above it."""
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    control = os.open(memory / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    try:
        write(memory / "cgroup.event_control", f"{event} {control}")
    finally:
        os.close(control)
    return event


def _count(event: int | None) -> int:
    try:
        return 0 if event is None else os.eventfd_read(event)
    except BlockingIOError:
        return 0


def _cpu_seconds(accounting: Path) -> tuple[Measured, Measured]:
    """User and system time. Only their sum is exact; the kernel splits it by what ran at its ticks, and we as it does for v2."""
    total, user, system = (accounting / f"cpuacct.usage{part}" for part in ("", "_user", "_sys"))
    total_s, user_ns, system_ns = int(read(total)) / 1e9, int(read(user)), int(read(system))
    system_s = total_s * system_ns / (user_ns + system_ns) if system_ns else 0.0
    return (
        Measured(value=total_s - system_s, source=f"{total}, by the ticks of {user.name}"),
        Measured(value=system_s, source=f"{total}, by the ticks of {system.name}"),
    )
