"""What the record says was used is what was used: programs that know their own need, and the record beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

import forge_orchestration
from forge_orchestration import EndReason, ExecutionRecord

MIB = 1 << 20
TOUCHED_BYTES = 512 * MIB
# a mapping of exactly that size, each page written once, kept for 300 ms: shorter than most samplers would notice
TOUCH = """
import mmap, sys, time
size = int(sys.argv[1])
area = mmap.mmap(-1, size) if size else b""
for at in range(0, size, mmap.PAGESIZE): area[at] = 1
time.sleep(0.3)
"""
# the processor time of its process when the loop ends; all that comes later is left out
LOOP = """
import os, sys, time
used = time.process_time
while used() < float(sys.argv[1]):
    for _ in range(100_000): pass
os.write(1, str(used()).encode())
os._exit(0)
"""
BUSY = """
import os, sys, time
end = time.monotonic() + float(sys.argv[1])
children = []
for _ in range(3):
    if (pid := os.fork()) == 0: break
    children.append(pid)
while time.monotonic() < end: pass
for pid in children: os.waitpid(pid, 0)
"""


def run(program: str, *words: str, **limits: object) -> ExecutionRecord:
    return forge_orchestration.run(["python", "-c", program, *words], limits=limits)


def completed(program: str, *words: str, **limits: object) -> ExecutionRecord:
    record = run(program, *words, **limits)
    assert record.end_reason is EndReason.COMPLETED, record.message
    return record


def cpu_s(record: ExecutionRecord) -> float:
    user, system = record.usage.cpu_user_s, record.usage.cpu_system_s
    assert user is not None and system is not None
    return user.value + system.value


@pytest.mark.parametrize("where", ["itself", "a child"])
def test_peak_memory(forge_home: Path, where: str) -> None:
    """Beside the same program that touches nothing, in the program's own process and in one that it starts."""
    program = (
        TOUCH if where == "itself" else f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {TOUCH!r}, *sys.argv[1:]])"
    )
    peaks = []
    for size in (0, TOUCHED_BYTES):
        peak = completed(program, str(size), memory=1024 * MIB).usage.peak_memory_bytes
        assert peak is not None
        peaks.append(peak.value)
    assert peaks[1] - peaks[0] == pytest.approx(TOUCHED_BYTES, rel=0.01)


def test_processor_time(forge_home: Path) -> None:
    record = completed(LOOP, "2")
    used = float(Path(record.logs["stdout"].path).read_text())
    assert cpu_s(record) == pytest.approx(used, rel=0.02)


@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_quota_of_one_core_holds(forge_home: Path, seconds: int) -> None:
    """Four busy processes; on a host with one processor there would be nothing to hold."""
    record = completed(BUSY, str(seconds), cpus=1)
    wall = record.usage.wall_s
    assert wall is not None and wall.value >= seconds
    assert cpu_s(record) / wall.value <= 1.05


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"], ids=["busy", "asleep"])
def test_wall_time_without_grace(forge_home: Path, program: str) -> None:
    record = run(program, wall_time=1.0, grace=0)
    wall = record.usage.wall_s
    assert record.end_reason is EndReason.WALL_TIME and wall is not None
    assert 1.0 <= wall.value <= 1.2
