"""The host's other work goes first: what is asked of the kernel, what is read back, and what happens where it does not listen."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.errors import HostError, SandboxError
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.sections import (
    IdentitySettings,
    MessageSettings,
    NeighbourSettings,
    OutputSettings,
    SupervisionSettings,
)
from forge_orchestration.sandbox import linux, precedence
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.plan import LaunchPlan
from forge_orchestration.settings import load_settings  # fmt: skip


@pytest.fixture(autouse=True)
def control_files_hold_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "write", lambda path, value: path.write_text(value))


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """The control file of a v1 host."""
    (tmp_path / "forge").mkdir()
    (tmp_path / "forge/cpu.shares").write_text("1024\n")
    return tmp_path / "forge/cpu.shares"


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The group of a v2 host, on whose one disk everything lies."""
    (tmp_path / "a.scope").mkdir()
    (tmp_path / "a.scope/cpu.weight").write_text("100\n")
    (tmp_path / "a.scope/io.max").write_text("")
    monkeypatch.setattr(precedence, "_disks", lambda folder, others: {"8:0"})
    return tmp_path / "a.scope"


def plan(tmp_path: Path, version: int, neighbours: NeighbourSettings) -> LaunchPlan:
    name, parent = ("cpu", "forge") if version == 1 else ("unified", "a.scope")
    return LaunchPlan(
    analysis="a",
        execution_id="i", folder=str(tmp_path), scratch_dir=str(tmp_path), bubblewrap="/usr/bin/bwrap", command=("true",),
        environment={}, limits=Limits(), system_binds=(), system_links={}, binds=(), outputs={}, parameters_json="{}",
        cgroup=CgroupSite(version=version, mounts={name: str(tmp_path)}, parent=parent), identity=IdentitySettings(),
        messages=MessageSettings(), output_caps=OutputSettings(), supervision=SupervisionSettings(), neighbours=neighbours,
    )  # fmt: skip


@pytest.mark.parametrize(("weight", "shares"), [(10, "102"), (100, "1024"), (1, "10"), (10_000, "102400")])
def test_a_weight_on_v1(v1: Path, tmp_path: Path, weight: int, shares: str) -> None:
    standing = precedence.hold_back(plan(tmp_path, 1, NeighbourSettings(cpu_weight=weight)))
    assert v1.read_text().strip() == shares
    assert (standing.protection, standing.enforced["cpu_weight"].value) == ("on", weight)
    assert standing.enforced["cpu_weight"].source == str(v1)


def test_a_weight_on_v2(v2: Path, tmp_path: Path) -> None:
    standing = precedence.hold_back(plan(tmp_path, 2, NeighbourSettings()))
    assert (v2 / "cpu.weight").read_text() == "10"
    assert (standing.protection, standing.enforced["cpu_weight"].value) == ("on", 10)


def test_a_weight_that_is_there_is_not_written_again(v1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v1.write_text("102\n")
    monkeypatch.setattr(precedence, "write", lambda path, value: pytest.fail("written"))
    assert precedence.hold_back(plan(tmp_path, 1, NeighbourSettings())).protection == "on"


def test_a_weight_that_cannot_be_written_is_told_with_the_remedy(v1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, value: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(precedence, "write", refuse)
    standing = precedence.hold_back(plan(tmp_path, 1, NeighbourSettings()))
    assert standing.protection.startswith("off: ") and "delegate-cgroup" in standing.protection
    assert "cpu_weight" not in standing.enforced


@pytest.mark.parametrize(("held", "writable", "fine"), [("102\n", False, True), ("1024\n", True, True), ("1024\n", False, False)])
def test_what_the_doctor_says(
    v1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str, writable: bool, fine: bool
) -> None:
    v1.write_text(held)
    monkeypatch.setattr(precedence, "scope_prefix", lambda parent: ())
    monkeypatch.setattr(
        precedence, "find_site", lambda parent: CgroupSite(version=1, mounts={"cpu": str(tmp_path)}, parent="forge")
    )
    monkeypatch.setattr(os, "access", lambda path, mode: writable)
    settings = load_settings(tmp_path)
    if fine:
        assert "weight of 10" in precedence.outlook(settings)
    else:
        with pytest.raises(HostError, match="is 1024, not 102") as caught:
            precedence.outlook(settings)
        assert "delegate-cgroup" in caught.value.hint


def test_a_kernel_that_keeps_another_weight(v1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "write", lambda path, value: None)
    standing = precedence.hold_back(plan(tmp_path, 1, NeighbourSettings()))
    assert standing.protection == f"off: {v1} was set to 102 and says 1024" and not standing.enforced


def test_disk_limits_on_v2(v2: Path, tmp_path: Path) -> None:
    limits = NeighbourSettings(write_bytes_per_s=1 << 20, reads_per_s=500)
    standing = precedence.hold_back(plan(tmp_path, 2, limits))
    assert (v2 / "io.max").read_text() == "8:0 wbps=1048576 riops=500"
    assert {name: one.value for name, one in standing.enforced.items()} == {
        "write_bytes_per_s": 1 << 20, "reads_per_s": 500, "cpu_weight": 10,
    }  # fmt: skip


def test_in_a_slice_systemd_is_asked(v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def set_properties(*properties: str) -> None:
        asked.extend(properties)
        name, content = (
            ("cpu.weight", "10") if properties[0].startswith("CPU") else ("io.max", "8:0 rbps=max wbps=5 riops=max wiops=6")
        )
        (tmp_path / "forge.slice" / name).write_text(content)

    monkeypatch.setattr(precedence, "set_slice_properties", set_properties)
    (tmp_path / "forge.slice").mkdir()
    (tmp_path / "forge.slice/cpu.weight").write_text("100\n")
    (tmp_path / "forge.slice/io.max").write_text("")
    inside = plan(tmp_path, 2, NeighbourSettings(write_bytes_per_s=5, writes_per_s=6))
    inside = msgspec.structs.replace(inside, cgroup=msgspec.structs.replace(inside.cgroup, parent="forge.slice/a.scope"))
    standing = precedence.hold_back(inside)
    assert standing.protection == "on" and set(standing.enforced) == {"cpu_weight", "write_bytes_per_s", "writes_per_s"}
    assert asked == ["IOWriteBandwidthMax=/dev/block/8:0 5", "IOWriteIOPSMax=/dev/block/8:0 6", "CPUWeight=10"]
    assert precedence.hold_back(inside) == standing and len(asked) == 3, "what is there is not asked for again"

    def refuse(*properties: str) -> None:
        raise HostError("systemctl cannot limit forge.slice: no.")

    monkeypatch.setattr(precedence, "set_slice_properties", refuse)
    (tmp_path / "forge.slice/cpu.weight").write_text("100\n")
    assert precedence.hold_back(inside).protection == "off: systemctl cannot limit forge.slice: no."


def test_a_limit_that_somebody_else_set_stays(v2: Path, tmp_path: Path) -> None:
    (v2 / "io.max").write_text(by_hand := "8:0 rbps=max wbps=5 riops=max wiops=max\n")
    assert set(precedence.hold_back(plan(tmp_path, 2, NeighbourSettings())).enforced) == {"cpu_weight"}
    assert (v2 / "io.max").read_text() == by_hand


@pytest.mark.parametrize("held", ["", "8:0 wbps=max", "8:0 wbps=4096", "8:16 wbps=1048576"])
def test_disk_limits_that_the_kernel_does_not_keep(v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str) -> None:
    monkeypatch.setattr(precedence, "write", lambda path, value: (v2 / "io.max").write_text(held))
    with pytest.raises(SandboxError, match="limits of disk 8:0 were set"):
        precedence.hold_back(plan(tmp_path, 2, NeighbourSettings(write_bytes_per_s=1 << 20)))


def test_disk_limits_that_were_not_delegated(v2: Path, tmp_path: Path) -> None:
    (v2 / "io.max").unlink()
    with pytest.raises(SandboxError, match=r"io\.max cannot be set") as caught:
        precedence.hold_back(plan(tmp_path, 2, NeighbourSettings(writes_per_s=1)))
    assert "io controller" in caught.value.hint


def test_disk_limits_where_there_is_no_disk(v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "_disks", lambda folder, others: set())
    with pytest.raises(SandboxError, match="no disk"):
        precedence.hold_back(plan(tmp_path, 2, NeighbourSettings(writes_per_s=1)))


def test_disk_limits_are_refused_on_v1(v1: Path, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="cgroup v1 cannot"):
        precedence.hold_back(plan(tmp_path, 1, NeighbourSettings(writes_per_s=1)))


def test_a_disk_is_a_whole_one() -> None:
    for name in precedence._disks("/", [os.makedev(0, 99)]):
        assert Path("/sys/dev/block", name).exists() and not Path("/sys/dev/block", name, "partition").exists()


@pytest.fixture
def child() -> Iterator[int]:
    """A process that stands back and waits."""
    ready, done = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            precedence.stand_back(NeighbourSettings(oom_score_adj=900, cpu_slice_ms=5))
            os.write(done, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(done)
    try:
        assert os.read(ready, 1) == b"."
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)


def test_a_process_stands_back(child: int) -> None:
    seen = precedence.read_back(child, NeighbourSettings(oom_score_adj=900, cpu_slice_ms=5))
    assert seen["oom_score_adj"].value == 900 == int(Path(f"/proc/{child}/oom_score_adj").read_text())
    if linux.time_slice(os.getpid()):
        assert seen["cpu_slice_ms"].value == 5


@pytest.mark.parametrize("wanted", [{"oom_score_adj": 901}, {"cpu_slice_ms": 6.0}], ids=["score", "slice"])
def test_a_process_that_does_not_stand_back_is_refused(
    child: int, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, float]
) -> None:
    monkeypatch.setattr(linux, "time_slice", lambda pid: 5_000_000)
    asked = msgspec.structs.replace(NeighbourSettings(oom_score_adj=900, cpu_slice_ms=5), **wanted)
    with pytest.raises(SandboxError, match="was set to"):
        precedence.read_back(child, asked)


def test_a_kernel_without_slices(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "time_slice", lambda pid: 0)
    assert set(precedence.read_back(child, NeighbourSettings(oom_score_adj=900))) == {"oom_score_adj"}
