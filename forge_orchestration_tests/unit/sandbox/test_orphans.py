"""Helpers of a supervisor: ended when it is dead, left alone while it lives, whoever is in the group beside them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.orphans import end_orphans, end_own_helpers, orphans
from forge_orchestration_tests.conftest import wait_until


class Supervisors:
    """A folder in the place of the supervisors' group, and processes that lead a session and have a helper in it."""

    def __init__(self, mount: Path) -> None:
        self.site = CgroupSite(version=1, mounts={"freezer": str(mount)}, parent="forge")
        self._file = mount / "forge/supervisors/cgroup.procs"
        self._file.parent.mkdir(parents=True)
        self.pids: list[int] = []
        self._write()

    def start(self) -> tuple[int, int]:
        """Pids of a supervisor and its helper."""
        read_end, write_end = os.pipe()
        if (pid := os.fork()) == 0:
            os.setsid()
            helper = os.fork()
            if helper == 0:
                os.execv("/bin/sleep", ["sleep", "300"])
            os.write(write_end, f"{helper}".encode())
            os.execv("/bin/sleep", ["sleep", "300"])
        helper = int(os.read(read_end, 32))
        os.close(read_end)
        os.close(write_end)
        self.pids += [pid, helper]
        self._write()
        return pid, helper

    def _write(self) -> None:
        self._file.write_text("".join(f"{pid}\n" for pid in self.pids))


@pytest.fixture
def supervisors(tmp_path: Path) -> Iterator[Supervisors]:
    made = Supervisors(tmp_path)
    yield made
    for pid in made.pids:
        if linux.start_time(pid) is not None:
            os.kill(pid, signal.SIGKILL)


def test_where_there_is_no_group_there_are_none(tmp_path: Path) -> None:
    site = CgroupSite(version=1, mounts={"freezer": str(tmp_path)}, parent="forge")
    assert orphans(site) == [] and end_orphans(site) == 0


def test_a_helper_whose_supervisor_lives_is_none(supervisors: Supervisors) -> None:
    supervisors.start()
    assert end_orphans(supervisors.site) == 0
    assert all(linux.start_time(pid) is not None for pid in supervisors.pids)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_helper_whose_supervisor_is_dead_is_ended_and_no_other(supervisors: Supervisors, reaped: bool) -> None:
    dead, helper = supervisors.start()
    others = supervisors.start()
    os.kill(dead, signal.SIGKILL)
    os.waitid(os.P_PID, dead, os.WEXITED | (0 if reaped else os.WNOWAIT))
    assert orphans(supervisors.site) == [helper]
    assert end_orphans(supervisors.site) == 1
    wait_until("its end", lambda: linux.start_time(helper) is None)
    assert all(linux.start_time(pid) is not None for pid in others)
    assert orphans(supervisors.site) == []


def test_a_supervisor_ends_its_own_and_not_itself(supervisors: Supervisors) -> None:
    others = supervisors.start()
    if (pid := os.fork()) == 0:
        try:
            os.setsid()
            if (helper := os.fork()) == 0:
                os.execv("/bin/sleep", ["sleep", "300"])
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            supervisors.pids += [os.getpid(), helper]
            supervisors._write()
            os._exit(0 if end_own_helpers(supervisors.site) == 1 and linux.start_time(helper) is None else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert all(linux.start_time(one) is not None for one in others)
