"""Whom to kill, found from outside: through files of the execution, rows of the store, and the kernel's tables of processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.sandbox.cgroups.find import CgroupSite, find_site, scope_prefix
from forge_orchestration.sandbox.cgroups.mounts import cgroup_mounts
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import is_own_tracker

SPAWNER = b"forge_orchestration.sandbox.spawner"


def kill(pid: int) -> bool:
    """SIGKILL; whether there was a process to get it."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            if _state(pid) not in "ZX":
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                return True
        finally:
            os.close(fd)
    return False


def controller_of(home: Path, execution_id: str) -> int | None:
    """Pid of the process that started an execution, by its row."""
    with contextlib.closing(sqlite3.connect(home / "store.db", timeout=30)) as store:
        row = store.execute("SELECT controller_pid FROM executions WHERE execution_id = ?", (execution_id,)).fetchone()
    return row[0] if row else None


def find(home: Path, kind: str, controller: int, execution_id: str | None) -> list[int]:
    """Processes of this kind that work for an execution, or, before there is one, for its controller; none is no error."""
    if kind == "controller":
        return [controller]
    spawners = [pid for pid in children(controller) if SPAWNER in _words(pid)]
    if kind == "spawner":
        return spawners
    supervisor = read_supervisor(ExecutionFolder(home / "executions", execution_id)) if execution_id else None
    if kind == "standby":
        busy = {supervisor.pid} if supervisor else set()
        return [pid for spawner in spawners for pid in children(spawner) if pid not in busy]
    if supervisor is None or execution_id is None:
        return []
    if kind == "supervisor":
        return [supervisor.pid]
    outer = [pid for pid in children(supervisor.pid) if _name(pid) == "bwrap"]
    if kind == "bubblewrap":
        return outer
    if kind == "bubblewrap inside":
        return [inner for pid in outer for inner in children(pid)]
    if kind == "entrant":
        return [pid for pid in children(supervisor.pid) if pid not in outer]
    return [pid for pid in members(home, execution_id) if _name(pid) != "bwrap"]


def of_home(home: Path) -> list[int]:
    """Controllers, spawners and supervisors of a home whose path is in the `PATH` that a fixture has given them."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if os.fsencode(home) in Path(entry.path, "environ").read_bytes() and not is_own_tracker(int(entry.name)):
                    found.append(int(entry.name))
    return found


def site_of(home: Path) -> CgroupSite:
    """Where a home's groups are."""
    return find_site(load_settings(home).cgroup.parent)


def members(home: Path, execution_id: str) -> list[int]:
    """Processes in an execution's group."""
    with contextlib.suppress(OSError):  # it has been removed: not there, or, if it was open already, no such device
        return [int(one) for one in (_groups(home, execution_id) / execution_id / "cgroup.procs").read_bytes().split()]
    return []


def _groups(home: Path, execution_id: str) -> Path:
    """The folder of the groups of an execution and its like: where its spawner was given a scope, that which its supervisor is in."""
    if not scope_prefix(load_settings(home).cgroup.parent):
        return site_of(home).folders("executions")[0]
    supervisor = read_supervisor(ExecutionFolder(home / "executions", execution_id))
    own = Path(f"/proc/{supervisor.pid}/cgroup").read_text() if supervisor else "0::/"
    return Path(cgroup_mounts()[1] or "", own.strip().removeprefix("0::/")).with_name("executions")


def children(pid: int) -> list[int]:
    """Of every thread of a process."""
    return list(_children(pid))


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                yield from map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())


def _words(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _state(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return "X"
