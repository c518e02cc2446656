"""Room and time of this host, by what the kernel says, and what is made of it."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.errors import HostError
from forge_orchestration.health import host
from forge_orchestration.health.guard_outlook import guard_outlook
from forge_orchestration.model.health import CheckResult
from forge_orchestration.model.sections import GuardSettings, HostCheckSettings
from forge_orchestration.settings import Settings

ALL = ["disk", "inodes", "memory", "memory_pressure", "load", "clock", "clock_jump"]


def checked(settings: Settings, **limits: float) -> dict[str, CheckResult]:
    changed = msgspec.structs.replace(settings, host_checks=msgspec.structs.replace(HostCheckSettings(), **limits))
    return {result.name: result for result in host.room_and_time_checks(changed)}


def test_all_are_warnings_with_a_finding_and_a_remedy_if_they_fail(settings: Settings) -> None:
    results = checked(settings)
    assert list(results) == ALL
    assert {result.severity for result in results.values()} == {"warning"}
    assert all(result.finding and bool(result.remedy) is not result.passed for result in results.values())


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("disk", {"free_disk_bytes": 0}, {"free_disk_bytes": 2**62}),
        ("inodes", {"free_inodes_percent": 0}, {"free_inodes_percent": 100}),
        ("memory", {"free_memory_bytes": 0}, {"free_memory_bytes": 2**62}),
        ("load", {"load_per_cpu": 10**6}, {"load_per_cpu": 1e-9}),
    ],
)
def test_the_settings_decide(settings: Settings, name: str, good: dict[str, float], bad: dict[str, float]) -> None:
    if name == "load":
        os.getloadavg()[1] or pytest.skip("this host has had nothing to do for five minutes")
    if name == "inodes" and not os.statvfs(settings.home).f_files:
        pytest.skip("this file system makes inodes as needed")
    assert checked(settings, **good)[name].passed
    assert not checked(settings, **bad)[name].passed


@pytest.mark.parametrize(("share", "passed"), [("0.00", True), ("9.99", True), ("10.01", False), ("100.00", False)])
def test_memory_pressure(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: str, passed: bool) -> None:
    said = f"some avg10=55.00 avg60={share} avg300=1.00 total=5\nfull avg10=55.00 avg60=99.00 avg300=0.00 total=0\n"
    (tmp_path / "memory").write_text(said)
    monkeypatch.setattr(host, "_PRESSURE", tmp_path / "memory")
    assert checked(settings)["memory_pressure"].passed is passed
    monkeypatch.setattr(host, "_PRESSURE", tmp_path / "none")
    assert checked(settings)["memory_pressure"].finding == "this kernel does not measure it"


def test_the_kernel_is_asked_whether_the_clock_is_kept_right(settings: Settings) -> None:
    """What the call returns says the same as the field that is read: it is where the kernel has it."""
    state = host._Timex()
    said = ctypes.CDLL(None).adjtimex(ctypes.byref(state))
    if said < 0:
        pytest.skip("this kernel does not say")
    assert bool(state.status & 0x40) is (said == 5), "TIME_ERROR"
    result = checked(settings)["clock"]
    assert result.passed is (said != 5)
    assert ("nothing keeps it right" in result.finding) is not result.passed


@pytest.mark.parametrize(("status", "passed"), [(0x40, False), (0x41, False), (0x2001, True), (0, True)])
def test_what_the_kernel_may_say_of_the_clock(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, status: int, passed: bool
) -> None:
    class Kernel:
        def adjtimex(self, state: ctypes._Pointer) -> int:
            state._obj.status, state._obj.maxerror = status, 1500
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Kernel())
    result = host._clock()
    assert result.passed is passed and (not passed or result.finding == "kept right, within 0.002 s")


class TestClockJump:
    def look_earlier(self, settings: Settings, **changes: object) -> None:
        """As if the last look had been another one."""
        place = settings.home / "clock.json"
        before = msgspec.json.decode(place.read_bytes(), type=host.ClockReading)
        place.write_bytes(msgspec.json.encode(msgspec.structs.replace(before, **changes)))

    def test_a_clock_that_goes_on(self, settings: Settings) -> None:
        assert checked(settings)["clock_jump"].passed
        assert checked(settings)["clock_jump"].passed

    @pytest.mark.parametrize("booted", [False, True])
    def test_one_that_was_set_back_is_told_once(self, settings: Settings, booted: bool) -> None:
        checked(settings)
        now = time.time()
        self.look_earlier(settings, wall_s=now + 3600, **({"boot_id": "an earlier one"} if booted else {}))
        result = checked(settings)["clock_jump"]
        assert not result.passed and "set back by 1" in result.finding
        assert checked(settings)["clock_jump"].passed

    def test_one_that_lost_what_has_passed_since(self, settings: Settings) -> None:
        """It does not lie behind the last look, but an hour has passed and it has gone on by none."""
        checked(settings)
        self.look_earlier(settings, since_boot_s=time.clock_gettime(time.CLOCK_BOOTTIME) - 3600)
        assert not checked(settings)["clock_jump"].passed

    @pytest.mark.parametrize("changes", [{"wall_s": 5.0}, {"wall_s": 5.0, "boot_id": "x"}])
    def test_forwards_is_no_jump_back(self, settings: Settings, changes: dict) -> None:
        checked(settings)
        self.look_earlier(settings, **changes)
        assert checked(settings)["clock_jump"].passed

    def test_torn_and_closed(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        (settings.home / "clock.json").write_text("{")
        assert checked(settings)["clock_jump"].passed

        def no_space(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(host, "write_atomically", no_space)
        assert "No space left" in checked(settings)["clock_jump"].finding


class TestGuardOutlook:
    def test_it_says_what_is_guarded(self, settings: Settings, tmp_path: Path) -> None:
        guard = GuardSettings(groups=("single_cell",), analyses=("exec",), paths=(tmp_path,))
        said = guard_outlook(msgspec.structs.replace(settings, guard=guard, protected_databases={"a": "sqlite:////x"}))
        assert said == "1 databases and 1 paths are looked at around pbmc_clusters, pbmc_from_counts"

    @pytest.mark.parametrize("key", ["analyses", "groups", "tags"])
    def test_a_name_that_fits_nothing(self, settings: Settings, tmp_path: Path, key: str) -> None:
        guard = GuardSettings(paths=(tmp_path,), **{key: ("pbmc_cluster",)})
        with pytest.raises(HostError, match="has the .* 'pbmc_cluster'"):
            guard_outlook(msgspec.structs.replace(settings, guard=guard))

    def test_a_path_that_is_a_link_or_is_not_there(self, settings: Settings, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("data")
        guard = GuardSettings(analyses=("*",), paths=(tmp_path / "link", tmp_path / "gone"))
        with pytest.raises(HostError, match=r"link is a link to data, which is not looked at; .*gone is not there"):
            guard_outlook(msgspec.structs.replace(settings, guard=guard))
