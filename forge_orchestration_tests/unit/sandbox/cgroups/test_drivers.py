"""The two drivers against folders with control files that answer as a kernel does, or as a broken one."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from forge_orchestration.errors import HostError, SandboxError
from forge_orchestration.model.limits import Limits
from forge_orchestration.sandbox.cgroups import base, find, v1, v2
from forge_orchestration.sandbox.cgroups.base import expect, keyed, page_rounded, write
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.cgroups.v1 import CgroupV1
from forge_orchestration.sandbox.cgroups.v2 import CgroupV2, delegate_controllers

LIMITS = Limits(memory_bytes=100 * 2**20 + 1, cpus=0.5, pids=17)
V2_FILES = {
    "memory.max": "max", "memory.oom.group": "0", "memory.swap.max": "max", "cpu.max": "max 100000", "pids.max": "max", "cgroup.procs": "",
    "memory.events": "low 0\nhigh 0\nmax 9\noom 0\noom_kill 0\noom_group_kill 0", "cpu.stat": "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\nnr_periods 0",
    "pids.events": "max 0", "memory.peak": "12345", "pids.peak": "6", "io.stat": "8:0 rbytes=100 wbytes=200 rios=1 wios=2\n8:16 rbytes=1 wbytes=2 rios=0 wios=0",
    "cgroup.kill": "",
}  # fmt: skip
V1_FILES = {
    "memory": {"memory.limit_in_bytes": "9223372036854771712", "memory.memsw.limit_in_bytes": "9223372036854771712", "memory.swappiness": "60",
               "memory.max_usage_in_bytes": "12345", "memory.failcnt": "0", "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0",
               "cgroup.event_control": "", "cgroup.procs": "", "tasks": ""},
    "cpu": {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1", "cgroup.procs": "", "tasks": ""},
    "cpuacct": {"cpuacct.usage": "3000000000", "cpuacct.usage_user": "200000000", "cpuacct.usage_sys": "100000000", "cgroup.procs": "", "tasks": ""},
    "pids": {"pids.max": "max", "pids.events": "max 0", "pids.peak": "6", "cgroup.procs": "", "tasks": ""},
    "freezer": {"freezer.state": "THAWED", "cgroup.procs": "", "tasks": ""},
}  # fmt: skip


def replace(path: Path, value: str) -> None:
    """Control files are written in place by one call; a regular file must be emptied first to hold the same."""
    path.write_text(value)


@pytest.fixture(autouse=True)
def control_files_hold_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (base, v1, v2, find):
        if hasattr(module, "write"):
            monkeypatch.setattr(module, "write", lambda path, value: _existing(path).write_text(value))


def _existing(path: Path) -> Path:
    assert path.exists(), f"{path} is no control file"
    return path


@pytest.fixture
def group2(tmp_path: Path) -> CgroupV2:
    group = CgroupV2(tmp_path, "x")
    group.create()
    for name, content in V2_FILES.items():
        (tmp_path / "x" / name).write_text(content)
    return group


@pytest.fixture
def group1(tmp_path: Path) -> CgroupV1:
    group = CgroupV1({controller: tmp_path / controller for controller in V1_FILES}, "f/x")
    group.create()
    for controller, files in V1_FILES.items():
        for name, content in files.items():
            (tmp_path / controller / "f" / name).write_text(content)
            (tmp_path / controller / "f/x" / name).write_text(content)
    return group


def deaf(monkeypatch: pytest.MonkeyPatch, name: str, answer: str, module: object) -> None:
    """A kernel that takes what is written to `name` and holds `answer`."""

    def write(path: Path, value: str) -> None:
        _existing(path).write_text(answer if path.name == name else value)

    monkeypatch.setattr(module, "write", write)


class TestV2:
    def test_limits_are_set_and_read_back(self, group2: CgroupV2) -> None:
        enforced = group2.set_limits(LIMITS)
        (path,) = group2.paths
        assert {name: (path / name).read_text() for name in ("memory.max", "memory.swap.max", "cpu.max", "pids.max", "memory.oom.group")} == {
            "memory.max": str(100 * 2**20), "memory.swap.max": "0", "cpu.max": "50000 100000", "pids.max": "17", "memory.oom.group": "1"
        }  # fmt: skip
        assert {name: one.value for name, one in enforced.items()} == {"memory_bytes": 100 * 2**20, "cpus": 0.5, "pids": 17}
        assert enforced["pids"].source == str(path / "pids.max")

    @pytest.mark.parametrize(
        ("name", "answer"),
        [("memory.max", "max"), ("memory.max", "4096"), ("memory.swap.max", "max"), ("memory.swap.max", "1048576"), ("cpu.max", "max 100000"),
         ("cpu.max", "60000 100000"), ("pids.max", "max"), ("pids.max", "16"), ("memory.oom.group", "0")],
    )  # fmt: skip
    def test_another_value_than_the_one_asked_is_refused(
        self, group2: CgroupV2, monkeypatch: pytest.MonkeyPatch, name: str, answer: str
    ) -> None:
        deaf(monkeypatch, name, answer, v2)
        with pytest.raises((SandboxError, ValueError)) as caught:
            group2.set_limits(LIMITS)
        assert isinstance(caught.value, SandboxError), "a sentence, not a traceback"

    def test_without_swap_accounting_the_rest_holds(self, group2: CgroupV2) -> None:
        (group2.paths[0] / "memory.swap.max").unlink()
        assert set(group2.set_limits(LIMITS)) == {"memory_bytes", "cpus", "pids"}

    def test_a_missing_controller_is_an_error(self, group2: CgroupV2) -> None:
        (group2.paths[0] / "pids.max").unlink()
        with pytest.raises((SandboxError, OSError, AssertionError)):
            group2.set_limits(LIMITS)

    def test_counters(self, group2: CgroupV2) -> None:
        seen = group2.counters()
        assert (seen.oom_kills, seen.memory_limit_hit, seen.pids_refused) == (0, False, 0)
        assert [one.value for one in (seen.cpu_user_s, seen.cpu_system_s, seen.peak_memory_bytes, seen.peak_pids)] == [
            2.0,
            1.0,
            12345,
            6,
        ]
        assert (seen.io_read_bytes.value, seen.io_write_bytes.value) == (101, 202)

    def test_a_kernel_without_peaks_and_io(self, group2: CgroupV2) -> None:
        for name in ("memory.peak", "pids.peak", "io.stat"):
            (group2.paths[0] / name).unlink()
        seen = group2.counters()
        assert (seen.peak_memory_bytes, seen.peak_pids, seen.io_read_bytes, seen.io_write_bytes) == (None, None, None, None)

    @pytest.mark.parametrize(
        ("events", "local", "hit"),
        [
            ("oom 1\noom_kill 3", None, True),
            ("oom 0\noom_kill 3", None, False),
            ("oom 1\noom_kill 3\noom_group_kill 1", "oom 1\noom_kill 3\noom_group_kill 1", True),
            ("oom 0\noom_kill 3", "oom 0\noom_kill 3", False),
            ("oom 0\noom_kill 3\noom_group_kill 1", "oom 0\noom_kill 3\noom_group_kill 1", False),
        ],
        ids=["its own limit", "a limit above", "its own, local counters", "above, local counters", "above, as a group"],
    )
    def test_whose_limit_killed(self, group2: CgroupV2, events: str, local: str | None, hit: bool) -> None:
        (group2.paths[0] / "memory.events").write_text(events)
        if local is not None:
            (group2.paths[0] / "memory.events.local").write_text(local)
        seen = group2.counters()
        assert (seen.oom_kills, seen.memory_limit_hit) == (3, hit)

    def test_the_whole_group_is_killed_at_once(self, group2: CgroupV2) -> None:
        group2.kill()
        assert (group2.paths[0] / "cgroup.kill").read_text() == "1"

    def test_its_line_in_proc(self, group2: CgroupV2) -> None:
        assert group2.membership() == {":/x"}

    def test_controllers_that_were_not_delegated_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "cgroup.controllers").write_text("cpu io\n")
        (tmp_path / "cgroup.subtree_control").write_text("")
        with pytest.raises(SandboxError, match="memory, pids"):
            delegate_controllers(tmp_path)


class TestV1:
    def test_limits_are_set_and_read_back(self, group1: CgroupV1, tmp_path: Path) -> None:
        enforced = group1.set_limits(LIMITS)
        folder = {controller: tmp_path / controller / "f/x" for controller in V1_FILES}
        assert (folder["memory"] / "memory.limit_in_bytes").read_text() == str(100 * 2**20)
        assert (folder["memory"] / "memory.memsw.limit_in_bytes").read_text() == str(100 * 2**20)
        assert (folder["cpu"] / "cpu.cfs_quota_us").read_text() == "50000"
        assert (folder["pids"] / "pids.max").read_text() == "17"
        assert {name: one.value for name, one in enforced.items()} == {"memory_bytes": 100 * 2**20, "cpus": 0.5, "pids": 17}

    @pytest.mark.parametrize(
        ("name", "answer"),
        [("memory.limit_in_bytes", "9223372036854771712"), ("memory.memsw.limit_in_bytes", "9223372036854771712"), ("cpu.cfs_quota_us", "-1"),
         ("cpu.cfs_quota_us", "70000"), ("cpu.cfs_period_us", "1000"), ("pids.max", "max"), ("pids.max", "18")],
    )  # fmt: skip
    def test_another_value_than_the_one_asked_is_refused(
        self, group1: CgroupV1, monkeypatch: pytest.MonkeyPatch, name: str, answer: str
    ) -> None:
        deaf(monkeypatch, name, answer, v1)
        with pytest.raises(SandboxError):
            group1.set_limits(LIMITS)

    def test_without_swap_accounting_nothing_is_swapped(self, group1: CgroupV1, tmp_path: Path) -> None:
        (tmp_path / "memory/f/x/memory.memsw.limit_in_bytes").unlink()
        group1.set_limits(LIMITS)
        assert (tmp_path / "memory/f/x/memory.swappiness").read_text() == "0"

    def test_without_swap_accounting_a_swappiness_that_stays_is_refused(
        self, group1: CgroupV1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Or the memory limit would only push an analysis into the host's swap, and the record would claim otherwise."""
        (tmp_path / "memory/f/x/memory.memsw.limit_in_bytes").unlink()
        deaf(monkeypatch, "memory.swappiness", "60", v1)
        with pytest.raises(SandboxError):
            group1.set_limits(LIMITS)

    def test_counters(self, group1: CgroupV1) -> None:
        seen = group1.counters()
        assert (seen.oom_kills, seen.memory_limit_hit, seen.pids_refused) == (0, False, 0)
        assert [one.value for one in (seen.cpu_user_s, seen.cpu_system_s, seen.peak_memory_bytes, seen.peak_pids)] == [
            2.0,
            1.0,
            12345,
            6,
        ]

    @pytest.mark.parametrize(
        ("told_here", "told_above", "hit"), [(0, 0, False), (1, 1, False), (1, 0, True), (3, 2, True)],
        ids=["the host", "a limit above", "its own limit", "both"],
    )  # fmt: skip
    def test_whose_limit_killed(
        self, group1: CgroupV1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_here: int, told_above: int, hit: bool
    ) -> None:
        """The kernel tells a group of every want of memory in it or above it; that of cache at its limit is none."""
        events: dict[Path, int] = {}
        monkeypatch.setattr(v1, "_out_of_memory_events", lambda folder: events.setdefault(folder, os.eventfd(0, os.EFD_NONBLOCK)))
        group1.set_limits(LIMITS)
        folder = tmp_path / "memory/f/x"
        (folder / "memory.max_usage_in_bytes").write_text(str(100 * 2**20))
        (folder / "memory.failcnt").write_text("7")
        (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2")
        for event, count in ((events[folder], told_here), (events[folder.parent], told_above)):
            for _ in range(count):
                os.eventfd_write(event, 1)
                group1.counters()
        seen = group1.counters()
        assert (seen.oom_kills, seen.memory_limit_hit) == (2, hit)

    def test_sockets_that_hold_much_more_than_goes_with_the_memory_limit(
        self, group1: CgroupV1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(v1, "_out_of_memory_events", lambda folder: os.eventfd(0, os.EFD_NONBLOCK))
        folder = tmp_path / "memory/f/x"
        (folder / "memory.kmem.tcp.limit_in_bytes").write_text("")
        group1.set_limits(LIMITS)
        share = int((folder / "memory.kmem.tcp.limit_in_bytes").read_text())
        assert 6 * 2**20 < share < 100 * 2**20 / 15
        for usage, over in ((share, 0), (2 * share, 0), (2 * share + 17, 17)):
            (folder / "memory.kmem.tcp.usage_in_bytes").write_text(str(usage))
            assert group1.refusals().socket_bytes_over == over

    def test_an_old_kernel_without_a_peak_of_processes(self, group1: CgroupV1, tmp_path: Path) -> None:
        (tmp_path / "pids/f/x/pids.peak").unlink()
        assert group1.counters().peak_pids is None

    def test_processor_time_between_two_ticks_is_not_lost(self, group1: CgroupV1, tmp_path: Path) -> None:
        for name in ("cpuacct.usage_user", "cpuacct.usage_sys"):
            (tmp_path / "cpuacct/f/x" / name).write_text("0")
        seen = group1.counters()
        assert (seen.cpu_user_s.value, seen.cpu_system_s.value) == (3.0, 0.0)

    def test_a_kill_freezes_and_thaws(self, group1: CgroupV1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        states: list[str] = []
        state = tmp_path / "freezer/f/x/freezer.state"
        monkeypatch.setattr(v1, "write", lambda path, value: (states.append(value), path.write_text(value)))
        monkeypatch.setattr(v1, "kill_pids", lambda pids: states.append(f"killed {pids} while {state.read_text()}"))
        group1.kill()
        assert states == ["FROZEN", "killed [] while FROZEN", "THAWED"]

    def test_controllers_that_share_a_mount_share_a_folder(self, tmp_path: Path) -> None:
        mounts = {controller: tmp_path / controller for controller in V1_FILES} | {"cpuacct": tmp_path / "cpu"}
        group = CgroupV1(mounts, "x")
        assert len(group.paths) == 4
        group.create()
        assert (tmp_path / "cpu/x").is_dir()

    def test_its_lines_in_proc(self, group1: CgroupV1) -> None:
        assert group1.membership() == {f"{controller}:/f/x" for controller in V1_FILES}


class TestShared:
    def test_pids_of_a_group_that_is_gone(self, tmp_path: Path) -> None:
        assert CgroupV2(tmp_path, "nothing").pids() == []
        assert CgroupV2(tmp_path, "nothing").end() == 0

    def test_removing_is_idempotent(self, tmp_path: Path) -> None:
        group = CgroupV2(tmp_path, "x")
        group.create()
        assert group.remove() and group.remove()
        assert not group.paths[0].exists()

    def test_a_group_that_the_kernel_keeps_is_told(self, group2: CgroupV2) -> None:
        assert group2.remove(timeout_s=0.05) is False

    def test_members_get_a_signal_and_the_spared_do_not(self, group2: CgroupV2, request: pytest.FixtureRequest) -> None:
        # whoever imported Dagster into this process may have left a handler, which the children would inherit
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
        read_end, write_end = os.pipe()
        children = []
        for _ in range(2):
            if (pid := os.fork()) == 0:
                os.close(write_end)
                os.read(read_end, 1)
                os._exit(0)
            children.append(pid)
        os.close(read_end)
        (group2.paths[0] / "cgroup.procs").write_text("\n".join(map(str, children)))
        try:
            assert group2.signal_members(15, spared=(children[0],)) == 1
            assert os.waitpid(children[1], 0)[1] == 15
        finally:
            os.close(write_end)
        assert os.waitpid(children[0], 0)[1] == 0

    def test_who_has_the_pid_of_a_member_that_is_gone_gets_no_signal(
        self, group2: CgroupV2, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listed = iter([[os.getpid()], []])
        monkeypatch.setattr(group2, "pids", lambda: next(listed))
        assert group2.signal_members(15) == 0  # else this process would have ended

    @pytest.mark.parametrize("found", [0.4999, 0.5001, -1, 0])
    def test_expect_refuses_any_other_value(self, found: float) -> None:
        with pytest.raises(SandboxError, match=r"memory limit was set to 0\.5, but /f says"):
            expect("memory", Path("/f"), 0.5, found)

    def test_keyed_leaves_out_what_it_does_not_know(self) -> None:
        assert keyed("a 1\nb max\nc\n\nd 2 3\ne -1") == {"a": 1}

    def test_pages(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        assert page_rounded(page * 3 + 1) == page * 3


MOUNTINFO_V1 = """\
30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/pids rw shared:9 master:2 - cgroup cgroup rw,pids
35 30 0:31 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
"""


class TestSite:
    def fake_mounts(self, monkeypatch: pytest.MonkeyPatch, legacy: dict[str, str], unified: str | None) -> None:
        monkeypatch.setattr(find, "cgroup_mounts", lambda: (legacy, unified))

    def v1_mounts(self, tmp_path: Path) -> dict[str, str]:
        mounts = {controller: str(tmp_path / controller) for controller in v1.CONTROLLERS}
        for mount in mounts.values():
            Path(mount).mkdir()
        return mounts

    def test_mounts_of_a_hybrid_host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Path, "read_text", lambda self: MOUNTINFO_V1)
        legacy, unified = find.cgroup_mounts()
        assert unified == "/sys/fs/cgroup/unified"
        assert legacy["cpu"] == legacy["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
        assert (legacy["memory"], legacy["pids"]) == ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids")

    def test_v1_is_used_where_it_is_complete(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.fake_mounts(monkeypatch, self.v1_mounts(tmp_path), "/nowhere")
        site = find.find_site("a/b")
        assert (site.version, site.parent) == (1, "a/b")
        assert isinstance(site.group("ID"), CgroupV1) and site.group("ID").paths[0].parts[-4:] == ("a", "b", "executions", "ID")

    def test_v2_where_it_has_the_controllers(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids")
        self.fake_mounts(monkeypatch, {}, str(tmp_path))
        site = find.find_site("a")
        assert (site.version, site.mounts) == (2, {"unified": str(tmp_path)})
        assert isinstance(site.group("ID"), CgroupV2)

    @pytest.mark.parametrize("controllers", ["cpu io", "", "memory pids", None])
    def test_a_host_without_them(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, controllers: str | None) -> None:
        if controllers is not None:
            (tmp_path / "cgroup.controllers").write_text(controllers)
        self.fake_mounts(monkeypatch, {"memory": "/nowhere"}, str(tmp_path))
        with pytest.raises(HostError, match="no cgroup with the controllers"):
            find.find_site("a")

    def test_a_host_without_any(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake_mounts(monkeypatch, {}, None)
        with pytest.raises(HostError):
            find.find_site("")

    def test_one_that_cannot_be_written(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.fake_mounts(monkeypatch, self.v1_mounts(tmp_path), None)
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(HostError, match="cannot be written") as caught:
            find.find_site("a")
        assert "delegate-cgroup" in caught.value.hint

    def test_groups_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "p").touch()
        with pytest.raises(HostError, match="No cgroup of Forge's own can be made"):
            CgroupSite(version=2, mounts={"unified": str(tmp_path)}, parent="p").enter()


def test_on_this_host_a_group_is_made_used_and_removed(forge_home: Path) -> None:
    """The real kernel, without a sandbox: limits read back, a member that wants too much is ended, nothing stays."""
    from forge_orchestration.executions.folder import new_execution_id
    from forge_orchestration_tests.conftest import prerequisite

    prerequisite(os.geteuid() == 0, "joining a group from outside of a delegated scope needs root")
    prerequisite(not find.scope_prefix(), "this host's groups are made by systemd")
    site = find.find_site()
    group = site.group(new_execution_id())
    done = threading.Event()
    group.create()
    try:
        assert group.set_limits(Limits(memory_bytes=64 * 2**20, cpus=0.5, pids=8))["pids"].value == 8
        if (pid := os.fork()) == 0:
            for path in group.join_files:
                write(path, "0")
            done.set()
            os.execv("/bin/sleep", ["sleep", "60"])
        while pid not in group.pids():
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        assert group.end() == 1
        assert os.waitpid(pid, 0)[1] == 9
    finally:
        assert group.remove()
