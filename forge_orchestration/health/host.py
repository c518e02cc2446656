"""Whether this host has room and time: disk, inodes, memory, load, and a clock that can be relied on. Warnings, all of them."""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from pathlib import Path

import msgspec

from forge_orchestration.executions.folder import write_atomically
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.health import CheckResult
from forge_orchestration.sandbox import linux
from forge_orchestration.settings import Settings, make_home
from forge_orchestration.units import format_bytes, format_seconds

_PRESSURE = Path("/proc/pressure/memory")
_UNSYNCHRONISED = 0x40  # STA_UNSYNC of <sys/timex.h>


@compiled
class ClockReading(msgspec.Struct, frozen=True, kw_only=True):
    """What two clocks said at one look: the one that people set, and the one that only goes on; seconds."""

    boot_id: str
    wall_s: float
    since_boot_s: float


class _Timex(ctypes.Structure):
    """The beginning of the kernel's `struct timex`, and more room than it needs."""

    _fields_ = [
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("rest", ctypes.c_byte * 256),
    ]  # fmt: skip


def room_and_time_checks(settings: Settings) -> list[CheckResult]:
    """All of them, in the order of the docstring above. Keeps what the clocks say, for the next look."""
    make_home(settings)
    return [
        _disk(settings), _inodes(settings), _memory(settings), _memory_pressure(settings), _load(settings), _clock(), _clock_jump(settings),
    ]  # fmt: skip


def _result(name: str, passed: bool, finding: str, remedy: str) -> CheckResult:
    return CheckResult(
        name=name, target="host", passed=passed, severity="warning", finding=finding, remedy="" if passed else remedy
    )


def _disk(settings: Settings) -> CheckResult:
    free = shutil.disk_usage(settings.home).free
    return _result(
        "disk", free >= settings.host_checks.free_disk_bytes, f"{format_bytes(free)} free at {settings.home}",
        "Remove executions that are no longer needed, or set FORGE_HOME to a larger disk.",
    )  # fmt: skip


def _inodes(settings: Settings) -> CheckResult:
    there = os.statvfs(settings.home)
    if not there.f_files:
        return _result("inodes", True, f"the file system at {settings.home} makes them as needed", "")
    percent = there.f_favail / there.f_files * 100
    return _result(
        "inodes", percent >= settings.host_checks.free_inodes_percent, f"{percent:.0f} % of the inodes free at {settings.home}",
        "Remove executions that are no longer needed: it is the number of files that counts, not their size.",
    )  # fmt: skip


def _memory(settings: Settings) -> CheckResult:
    import psutil

    memory = psutil.virtual_memory()
    return _result(
        "memory", memory.available >= settings.host_checks.free_memory_bytes,
        f"{format_bytes(memory.available)} of {format_bytes(memory.total)} available", "Wait for other work to end, or run it elsewhere.",
    )  # fmt: skip


def _memory_pressure(settings: Settings) -> CheckResult:
    try:
        said = _PRESSURE.read_text()
    except OSError:  # a kernel without it, or with psi=0
        return _result("memory_pressure", True, "this kernel does not measure it", "")
    percent = float(next(word for word in said.split() if word.startswith("avg60=")).removeprefix("avg60="))
    return _result(
        "memory_pressure", percent <= settings.host_checks.memory_pressure_percent,
        f"in {percent:g} % of the last minute something waited for memory",
        "Lower [capacity] memory in settings.toml, or let fewer other programs run: the host has too little for all of them.",
    )  # fmt: skip


def _load(settings: Settings) -> CheckResult:
    load, cpus = os.getloadavg()[1], os.cpu_count() or 1
    return _result(
        "load", load / cpus <= settings.host_checks.load_per_cpu,
        f"{load:.1f} processes on average wanted one of {cpus} processors, or a disk, in the last five minutes",
        "Wait for other work to end, or limit it: [capacity] cpus and executions in settings.toml.",
    )  # fmt: skip


def _clock() -> CheckResult:
    state = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state)) < 0:
        return _result("clock", True, f"the kernel does not say whether it is kept right ({os.strerror(ctypes.get_errno())})", "")
    if state.status & _UNSYNCHRONISED:
        remedy = "sudo apt-get install systemd-timesyncd (or chrony); in a container or virtual machine: on its host"
        return _result("clock", False, "nothing keeps it right, so times in records may be wrong", remedy)
    return _result("clock", True, f"kept right, within {state.maxerror / 1e6:.3f} s", "")


def _clock_jump(settings: Settings) -> CheckResult:
    place = settings.home / "clock.json"
    now = ClockReading(boot_id=linux.boot_id(), wall_s=time.time(), since_boot_s=time.clock_gettime(time.CLOCK_BOOTTIME))
    try:
        before = msgspec.json.decode(place.read_bytes(), type=ClockReading)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):  # nothing to compare with
        before = now
    try:
        write_atomically(place, msgspec.json.encode(now))
    except OSError as error:
        return _result("clock_jump", False, f"{place} cannot be written: {error.strerror}", "Is the disk full?")
    passed_s = now.since_boot_s - before.since_boot_s if now.boot_id == before.boot_id else 0.0
    back_s = before.wall_s + passed_s - now.wall_s
    if back_s <= settings.host_checks.clock_jump_s:
        return _result("clock_jump", True, "not set back since the last look", "")
    return _result(
        "clock_jump", False, f"set back by {format_seconds(round(back_s, 1))} since the last look: records from before seem to be of later",
        "Find out who sets it. Ages and the order of executions of that time cannot be relied on.",
    )  # fmt: skip
