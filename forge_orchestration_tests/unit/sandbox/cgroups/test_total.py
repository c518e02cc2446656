"""The cap on all executions, against folders with control files that answer as a kernel does, or as a broken one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from forge_orchestration.errors import HostError
from forge_orchestration.model.capacity import Capacity
from forge_orchestration.sandbox.cgroups import find, total
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.cgroups.total import Total, within_what_is_above

CAPACITY = Capacity(memory_bytes=100 * 2**20, pids=500, cpus=1.5)
V1 = {"memory": "memory.limit_in_bytes", "pids": "pids.max", "cpu": "cpu.cfs_quota_us"}
V2 = {"memory": "memory.max", "pids": "pids.max", "cpu": "cpu.max"}


@pytest.fixture(autouse=True)
def control_files_hold_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, value: str) -> None:
        if not path.exists():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        path.write_text(value)

    monkeypatch.setattr(total, "write", write)


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> CgroupSite:
    """Of a group without limits."""
    if request.param == 2:
        made = CgroupSite(version=2, mounts={"unified": str(tmp_path)}, parent="p")
        for name, content in (("memory.max", "max"), ("pids.max", "max"), ("cpu.max", "max 100000")):
            put(tmp_path / "p/executions" / name, content)
        return made
    mounts = {controller: str(tmp_path / controller) for controller in ("memory", "pids", "cpu")}
    for path, content in (
        ("memory/p/executions/memory.limit_in_bytes", "9223372036854771712"), ("memory/p/executions/memory.use_hierarchy", "1"),
        ("pids/p/executions/pids.max", "max"), ("cpu/p/executions/cpu.cfs_quota_us", "-1"),
        ("cpu/p/executions/cpu.cfs_period_us", "50000"),
    ):  # fmt: skip
        put(tmp_path / path, content)
    return CgroupSite(version=1, mounts=mounts, parent="p")


def put(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def held(site: CgroupSite) -> dict[str, str]:
    files = V1 if site.version == 1 else V2
    return {what: control(site, name).read_text() for what, name in files.items()}


def control(site: CgroupSite, name: str, group: str = "p/executions") -> Path:
    mount = site.mounts.get("unified") or site.mounts[name.split(".")[0]]
    return Path(mount, group, name)


def test_all_of_it_is_set(site: CgroupSite) -> None:
    Total(site, CAPACITY).hold(raise_only=False)
    quota = "150000" if site.version == 1 else "150000 100000"
    assert held(site) == {"memory": str(100 * 2**20), "pids": "500", "cpu": quota}
    if site.version == 1:
        assert control(site, "cpu.cfs_period_us").read_text() == "100000"


def test_processors_are_not_capped_unless_the_deployment_says_so(site: CgroupSite) -> None:
    Total(site, CAPACITY).hold(raise_only=False)
    Total(site, Capacity(memory_bytes=100 * 2**20, pids=500)).hold(raise_only=False)
    assert held(site)["cpu"] in ("-1", "max 100000"), "the cap of earlier settings is gone"


def test_a_cap_is_raised_under_executions_and_not_lowered(site: CgroupSite) -> None:
    Total(site, CAPACITY).hold(raise_only=False)
    before = held(site)
    less = Capacity(memory_bytes=2**20, pids=5, cpus=0.5)
    Total(site, less).hold(raise_only=True)
    assert held(site) == before
    Total(site, Capacity(memory_bytes=2**30, pids=600, cpus=2.5)).hold(raise_only=True)
    assert {what: text.split()[0] for what, text in held(site).items()} == {"memory": str(2**30), "pids": "600", "cpu": "250000"}
    Total(site, less).hold(raise_only=False)
    assert held(site)["pids"] == "5"


@pytest.mark.parametrize("what", V1)
def test_a_kernel_that_holds_another_value(site: CgroupSite, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    name = (V1 if site.version == 1 else V2)[what]
    monkeypatch.setattr(total, "write", lambda path, value: path.write_text("7" if path.name == name else value))
    with pytest.raises(HostError, match=f"{name} says 7"):
        Total(site, CAPACITY).hold(raise_only=False)


def test_a_file_that_is_not_there(site: CgroupSite) -> None:
    control(site, "pids.max").unlink()
    with pytest.raises(HostError, match=r"pids\.max"):
        Total(site, CAPACITY).hold(raise_only=False)


class TestHierarchy:
    def memory(self, tmp_path: Path, content: str) -> CgroupSite:
        put(tmp_path / "memory/p/executions/memory.use_hierarchy", content)
        return CgroupSite(version=1, mounts={name: str(tmp_path / name) for name in ("memory", "pids", "cpu")}, parent="p")

    def test_a_group_is_told_to_count_its_children(self, tmp_path: Path) -> None:
        Total(self.memory(tmp_path, "0\n"), CAPACITY)
        assert (tmp_path / "memory/p/executions/memory.use_hierarchy").read_text() == "1"

    @pytest.mark.parametrize("deaf", [True, False])
    def test_one_that_does_not_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
        def write(path: Path, value: str) -> None:
            if not deaf:
                raise OSError(16, "Device or resource busy", str(path))

        monkeypatch.setattr(total, "write", write)
        with pytest.raises(HostError, match="does not count"):
            Total(self.memory(tmp_path, "0"), CAPACITY)


class TestWhatIsAbove:
    def test_the_least_of_all_groups_above_holds(self, site: CgroupSite) -> None:
        deep = CgroupSite(version=site.version, mounts=site.mounts, parent="a/b/c")
        memory, pids = (V1 if site.version == 1 else V2)["memory"], "pids.max"
        put(control(site, memory, "a"), str(60 * 2**20))
        put(control(site, memory, "a/b"), str(80 * 2**20))
        put(control(site, memory, "a/b/c"), "9223372036854771712" if site.version == 1 else "max")
        put(control(site, pids, "a/b/c"), "300")
        assert within_what_is_above(CAPACITY, deep) == Capacity(memory_bytes=60 * 2**20, pids=300, cpus=1.5)

    def test_more_above_changes_nothing(self, site: CgroupSite) -> None:
        put(control(site, "pids.max", ""), "501")
        assert within_what_is_above(CAPACITY, site) == CAPACITY


class TestSlice:
    """Under systemd: the slice that holds the scopes of all controllers is limited through systemd."""

    @pytest.fixture
    def scope(self, tmp_path: Path) -> CgroupSite:
        name = "user.slice/user@5.service/forge.slice"
        for folder in (name, f"{name}/run-1.scope/executions"):
            for file, content in (("memory.max", "max"), ("pids.max", "max"), ("cpu.max", "max 100000")):
                put(tmp_path / folder / file, content)
        return CgroupSite(version=2, mounts={"unified": str(tmp_path)}, parent=f"{name}/run-1.scope")

    @pytest.fixture
    def said(self, monkeypatch: pytest.MonkeyPatch, scope: CgroupSite) -> list[list[str]]:
        """What systemctl was told; it does it."""
        commands: list[list[str]] = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            folder = Path(scope.mounts["unified"], scope.parent).parent
            values = dict(word.split("=") for word in command if "=" in word)
            (folder / "memory.max").write_text(values["MemoryMax"].replace("infinity", "max"))
            (folder / "pids.max").write_text(values["TasksMax"].replace("infinity", "max"))
            quota = values["CPUQuota"].rstrip("%")
            (folder / "cpu.max").write_text(f"{round(float(quota) * 1000)} 100000" if quota else "max 100000")
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        return commands

    def test_it_is_limited_once_with_an_allowance_for_supervisors(self, scope: CgroupSite, said: list[list[str]]) -> None:
        cap = Total(scope, CAPACITY)
        cap.hold(raise_only=False)
        cap.hold(raise_only=True)
        (command,) = said
        assert command[0] == "systemctl" and ("--user" in command) is (os.geteuid() != 0)
        assert "forge.slice" in command and "--runtime" in command and "CPUQuota=150%" in command
        folder = Path(scope.mounts["unified"], scope.parent)
        assert 100 * 2**20 < int((folder.parent / "memory.max").read_text()) < 400 * 2**20
        assert 500 < int((folder.parent / "pids.max").read_text()) < 1700
        assert (folder / "executions/memory.max").read_text() == str(100 * 2**20), "its own executions have no allowance"

    def test_it_is_not_lowered_under_the_executions_of_others(self, scope: CgroupSite, said: list[list[str]]) -> None:
        Total(scope, CAPACITY).hold(raise_only=False)
        before = Path(scope.mounts["unified"], scope.parent).parent.joinpath("memory.max").read_text()
        Total(scope, Capacity(memory_bytes=2**23, pids=900)).hold(raise_only=True)
        folder = Path(scope.mounts["unified"], scope.parent).parent
        assert (folder / "memory.max").read_text() == before
        assert int((folder / "pids.max").read_text()) > 900 and (folder / "cpu.max").read_text() == "max 100000"

    def test_what_is_above_the_slice_counts_and_the_slice_itself_does_not(self, scope: CgroupSite, tmp_path: Path) -> None:
        put(tmp_path / "user.slice/memory.max", str(90 * 2**20))
        put(tmp_path / "user.slice/user@5.service/forge.slice/memory.max", "5")
        assert within_what_is_above(CAPACITY, scope).memory_bytes == 90 * 2**20

    @pytest.mark.parametrize(
        "answer", [subprocess.CompletedProcess([], 1, "", "Access denied\nat all"), subprocess.TimeoutExpired("x", 1)]
    )
    def test_a_systemd_that_refuses(self, scope: CgroupSite, monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
        def run(*_: object, **__: object) -> object:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(subprocess, "run", run)
        with pytest.raises(HostError, match=r"cannot limit forge\.slice"):
            Total(scope, CAPACITY).hold(raise_only=False)

    def test_a_systemd_that_says_yes_and_does_nothing(self, scope: CgroupSite, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "", ""))
        with pytest.raises(HostError, match="says inf"):
            Total(scope, CAPACITY).hold(raise_only=False)


class TestNames:
    @pytest.fixture
    def systemd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(find, "cgroup_mounts", lambda: ({}, "/sys/fs/cgroup"))
        monkeypatch.setattr(os.path, "isdir", lambda path: True)

    def test_under_systemd_all_controllers_share_the_slice(self, systemd: None) -> None:
        assert find.shared_group() == "forge.slice" and "--slice=forge.slice" in find.scope_prefix()
        assert find.expected_site().parent.endswith("forge.slice/any.scope")
        assert find.shared_group("a/b") == "a/b", "a configured group is no scope"

    def test_elsewhere_they_share_the_group(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(find, "scope_prefix", lambda parent="": ())
        assert find.shared_group("a/b") == "a/b"
        assert find.shared_group() == ("forge" if os.geteuid() == 0 else find._own_name())
