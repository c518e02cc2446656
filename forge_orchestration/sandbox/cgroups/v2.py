"""cgroup v2: one folder an execution, beneath a delegated one."""

from __future__ import annotations

import contextlib
import os
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

JOIN_FILE = "cgroup.procs"
CONTROLLERS = ("memory", "cpu", "pids")


class CgroupV2(Cgroup):
    """One execution's group.

    Args:
        mount: Where cgroup2 is mounted.
        name: The group beneath it, for example `forge/executions/ID`.
    """

    kind = "v2"
    join_file = JOIN_FILE

    def __init__(self, mount: Path, name: str) -> None:
        super().__init__()
        self._path = mount / name
        self.name = name

    @property
    def paths(self) -> list[Path]:
        return [self._path]

    def create(self) -> None:
        self._path.mkdir()

    def set_limits(self, limits: Limits) -> dict[str, Enforced]:
        path = self._path
        size = page_rounded(limits.memory_bytes)
        write(path / "memory.max", str(size))
        write(path / "memory.oom.group", "1")
        if (swap := path / "memory.swap.max").exists():
            write(swap, "0")
            expect("swap", swap, 0, int(read(swap).replace("max", "-1")))
        write(path / "cpu.max", f"{max(1000, round(limits.cpus * CPU_PERIOD_US))} {CPU_PERIOD_US}")
        write(path / "pids.max", str(limits.pids))
        if read(path / "memory.oom.group") != "1":
            raise SandboxError(f"{path}/memory.oom.group could not be set.")
        quota, period = read(path / "cpu.max").split()
        if quota == "max":
            raise SandboxError(f"The processor limit was set, but {path}/cpu.max says there is none.")
        most, limit = path / "pids.max", path / "memory.max"
        return {
            "memory_bytes": expect("memory", limit, size, int(read(limit).replace("max", "-1"))),
            "cpus": expect("processor", path / "cpu.max", limits.cpus, int(quota) / int(period)),
            "pids": expect("process", most, limits.pids, int(read(most).replace("max", "-1"))),
        }

    def membership(self) -> set[str]:
        return {f":/{self.name}"}

    def refusals(self) -> Refusals:
        path = self._path
        local = path / "memory.events.local"
        events = keyed(read(path / "memory.events"))
        own = keyed(read(local)) if local.exists() else events
        refused = keyed(read(path / "pids.events")).get("max", 0)
        if self.holds_container:  # before 6.11 counted where the process was
            refused = max(refused, self._beneath(path / "pids.events", "max"))
        return Refusals(
            oom_kills=events.get("oom_kill", 0),
            memory_limit_hit=own.get("oom", 0) > 0,  # oom_group_kill also counts what a limit above did to this group
            pids_refused=refused,
        )

    def counters(self) -> Counters:
        path = self._path
        cpu = keyed(read(path / "cpu.stat"))
        stat = str(path / "cpu.stat")
        transfers = _io_bytes(path / "io.stat")
        return Counters(
            **msgspec.structs.asdict(self.refusals()),
            cpu_user_s=Measured(value=cpu["user_usec"] / 1e6, source=stat),
            cpu_system_s=Measured(value=cpu["system_usec"] / 1e6, source=stat),
            peak_memory_bytes=_peak(path / "memory.peak"),
            peak_pids=_peak(path / "pids.peak"),
            io_read_bytes=transfers[0],
            io_write_bytes=transfers[1],
        )

    def kill(self) -> None:
        if (kill := self._path / "cgroup.kill").exists():
            write(kill, "1")
            return
        write(self._path / "cgroup.freeze", "1")  # before 5.14
        try:
            kill_pids(self.pids())
        finally:
            write(self._path / "cgroup.freeze", "0")


def delegate_controllers(folder: Path) -> None:
    """Let the children of `folder` have limits: `folder` itself may then hold no process.

    Raises:
        SandboxError: A controller is missing there, as happens silently when a parent did not delegate it.
    """
    there = set(read(folder / "cgroup.controllers").split())
    if missing := [name for name in CONTROLLERS if name not in there]:
        raise SandboxError(f"{folder} was not given the cgroup controllers {', '.join(missing)}.")
    write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in CONTROLLERS))
    if "io" in there:
        with contextlib.suppress(OSError):  # measured where it can be had; no limit depends on it
            write(folder / "cgroup.subtree_control", "+io")


def _peak(path: Path) -> Measured | None:
    return Measured(value=int(read(path)), source=str(path)) if path.exists() else None


def _io_bytes(path: Path) -> tuple[Measured | None, Measured | None]:
    if not os.path.exists(path):
        return None, None
    totals = {"rbytes": 0, "wbytes": 0}
    for line in read(path).splitlines():
        for field in line.split()[1:]:
            key, _, value = field.partition("=")
            if key in totals:
                totals[key] += int(value)
    return tuple(Measured(value=totals[key], source=str(path)) for key in ("rbytes", "wbytes"))  # type: ignore[return-value]
