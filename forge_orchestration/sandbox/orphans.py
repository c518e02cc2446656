"""Helpers of a dead supervisor that did not end with it.

bubblewrap and the entrant ask the kernel to be killed with their parent, but there are moments before they have asked, and
bubblewrap's inner process then waits for ever for a word of the outer one. They stay in the supervisors' group, where no
execution's group can tell of them. But they are in the session that their supervisor led, and the kernel gives its number to
no other process while they live.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

from forge_orchestration.errors import SandboxError
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.cgroups.find import CgroupSite

_TIMEOUT_S = 10.0


def orphans(site: CgroupSite) -> list[int]:
    """Processes in the supervisors' group whose session has lost its leader."""
    members = list(_members(site))
    dead = {leader for leader in {leader for _, leader in members} if linux.start_time(leader) is None}
    return [pid for pid, leader in members if leader in dead and leader != pid and linux.start_time(pid) is not None]


def end_orphans(site: CgroupSite) -> int:
    """Kill them, and wait until they have ended; returns how many there were.

    Raises:
        SandboxError: Some do not end, stuck in the kernel.
    """
    return _end(lambda: orphans(site))


def end_own_helpers(site: CgroupSite) -> int:
    """The same for those of the supervisor that calls this, when the command was never let go."""
    own = os.getpid()
    return _end(lambda: [pid for pid, leader in _members(site) if leader == own != pid and linux.start_time(pid) is not None])


def _end(look: Callable[[], list[int]]) -> int:
    killed: set[int] = set()
    deadline = time.monotonic() + _TIMEOUT_S
    while left := look():
        if time.monotonic() > deadline:
            raise SandboxError(f"Processes {left}, helpers of a dead supervisor, do not end.", "They may hang in the kernel.")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(left)
        time.sleep(0.001)
    return len(killed)


def _members(site: CgroupSite) -> Iterator[tuple[int, int]]:
    """Pid and session of each process in the supervisors' group."""
    with contextlib.suppress(FileNotFoundError), open(site.folders("supervisors")[0] / "cgroup.procs", "rb") as file:
        for pid in map(int, file.read().split()):
            with contextlib.suppress(ProcessLookupError):
                yield pid, os.getsid(pid)
