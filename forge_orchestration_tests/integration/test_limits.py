"""Every limit is met on purpose, and the record says which, with the measured value; the kernel's own files say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forge_orchestration.model.record import ExecutionRecord, record_from_json
from forge_orchestration_tests.conftest import PATIENCE, wait_until

FORK_BOMB = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
MEMORY = {
    "heap": "bytearray(1 << 30)",
    "child": "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'bytearray(1 << 30)']))",
    "shared memory": "f = open('/dev/shm/x', 'wb')\nfor _ in range(1024): f.write(bytes(1 << 20))",
    "memfd": "import os\nfd = os.memfd_create('x')\nfor _ in range(1024): os.write(fd, bytes(1 << 20))",
    "many small": "import subprocess, sys\nfor p in [subprocess.Popen([sys.executable, '-c', 'x = bytearray(40 << 20); import time; time.sleep(60)']) "
    "for _ in range(12)]: p.wait()",
}


def execute(forge, *words: str, timeout: float = 60) -> tuple[int, ExecutionRecord]:
    done = forge("exec", "--json", *words, timeout=timeout)
    assert done.stdout, done.stderr
    return done.returncode, record_from_json(done.stdout)


@pytest.mark.parametrize("form", MEMORY)
def test_memory(forge_home: Path, forge, form: str) -> None:
    status, record = execute(forge, "--memory", "256MiB", "--", "python", "-c", MEMORY[form])
    assert (status, record.end_reason) == (10, "memory"), record.message
    assert "256.0 MiB" in record.message and "peak" in record.message
    assert record.enforced["memory_bytes"].value == 256 << 20
    assert record.usage.peak_memory_bytes is not None and 0.9 * (256 << 20) < record.usage.peak_memory_bytes.value <= 256 << 20


def test_just_under_the_memory_limit_is_fine(forge_home: Path, forge) -> None:
    status, record = execute(forge, "--memory", "256MiB", "--", "python", "-c", "x = bytearray(200 << 20)")
    assert (status, record.end_reason) == (0, "completed")
    assert record.usage.peak_memory_bytes is not None and record.usage.peak_memory_bytes.value > 200 << 20


def test_wall_time_ends_with_sigterm(forge_home: Path, forge) -> None:
    status, record = execute(forge, "--wall-time", "1s", "--grace", "5s", "--", "sleep", "60")
    assert (status, record.end_reason, record.signal) == (11, "wall_time", 15)
    assert record.usage.wall_s is not None and 1.0 <= record.usage.wall_s.value < 3.0 * PATIENCE
    assert "1s" in record.message and "measured" in record.message


def test_wall_time_is_enforced_on_what_ignores_sigterm(forge_home: Path, forge) -> None:
    status, record = execute(
        forge, "--wall-time", "1s", "--grace", "1s", "--", "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"
    )
    assert (status, record.end_reason, record.signal) == (11, "wall_time", 9)
    assert record.usage.wall_s is not None and 2.0 <= record.usage.wall_s.value < 4.0 * PATIENCE


def test_the_grace_period_can_be_used(forge_home: Path, forge) -> None:
    script = "trap 'echo saved > $FORGE_OUTPUTS/last; exit 0' TERM; while :; do sleep 0.1; done"
    status, record = execute(forge, "--wall-time", "1s", "--grace", "5s", "--", "sh", "-c", script)
    assert (status, record.end_reason) == (11, "wall_time")
    assert [output.path for output in record.outputs] == ["last"]


def test_processes(forge_home: Path, forge) -> None:
    status, record = execute(forge, "--pids", "30", "--", "python", "-c", FORK_BOMB)
    assert (status, record.end_reason) == (12, "pids")
    assert "30 processes" in record.message and "refused" in record.message
    assert record.enforced["pids"].value == 30


def test_threads_count_as_processes(forge_home: Path, forge) -> None:
    code = "import threading, time\nfor _ in range(64): threading.Thread(target=time.sleep, args=(5,), daemon=True).start()"
    status, record = execute(forge, "--pids", "20", "--", "python", "-c", code)
    assert (status, record.end_reason) == (12, "pids")


@pytest.mark.parametrize("where", ["/forge/scratch", "/forge/outputs", "/tmp"])
def test_scratch(forge_home: Path, forge, where: str) -> None:
    status, record = execute(forge, "--scratch", "32MiB", "--", "python", "-c", f"open('{where}/x', 'wb').write(bytes(100 << 20))")
    assert (status, record.end_reason) == (13, "scratch"), record.message
    assert "32.0 MiB" in record.message and "measured" in record.message


def test_cpu_quota_holds(forge_home: Path, forge) -> None:
    status, record = execute(
        forge, "--cpus", "0.5", "--", "python", "-c", "import time\nend = time.monotonic() + 3\nwhile time.monotonic() < end: pass"
    )
    assert status == 0
    usage = record.usage
    assert usage.cpu_user_s and usage.cpu_system_s and usage.wall_s
    share = (usage.cpu_user_s.value + usage.cpu_system_s.value) / usage.wall_s.value
    assert share < 0.5 * 1.15
    assert record.enforced["cpus"].value == 0.5


def test_logs_are_capped_without_ending_the_analysis(forge_home: Path, forge) -> None:
    status, record = execute(
        forge, "--log", "1MiB", "--", "sh", "-c", "echo first; head -c 20000000 /dev/zero; echo last; echo done >&2"
    )
    assert (status, record.end_reason) == (0, "completed")
    log = record.logs["stdout"]
    assert (log.bytes, log.truncated_bytes) == (1 << 20, 20_000_011 - (1 << 20))
    content, note = Path(log.path).read_bytes(), b"\n[forge: %d bytes are left out here]\n" % log.truncated_bytes
    assert content.startswith(b"first\n") and content.endswith(b"last\n") and content.count(note) == 1
    assert len(content) == (1 << 20) + len(note)
    assert Path(record.logs["stderr"].path).read_text() == "done\n"


def test_limits_seen_from_outside_while_it_runs(forge_home: Path, forge) -> None:
    """The kernel's files, read by another process, hold what the record claims; and the program is in that group."""
    before = set(os.listdir(forge_home / "executions"))
    command = [sys.executable, "-m", "forge_orchestration.cli.main", "exec", "--memory", "123MiB", "--pids", "17", "--cpus", "0.7"]
    with subprocess.Popen([*command, "--json", "--", "sleep", "30"], stdout=subprocess.PIPE, text=True) as process:
        try:
            record = _running_record(forge_home, before)
            for name, expected in (("memory_bytes", 123 << 20), ("pids", 17), ("cpus", 0.7)):
                assert record.enforced[name].value == expected
            source = Path(record.enforced["memory_bytes"].source)
            assert int(source.read_text()) == 123 << 20
            read = (source.parent / "cgroup.procs").read_text
            wait_until("the program, and nothing else", lambda: len(read().split()) == 1)
            members = read().split()
            for pid in members:
                assert record.execution_id in Path(f"/proc/{pid}/cgroup").read_text()
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=60)
    assert process.returncode == 15 and json.loads(out)["end_reason"] == "canceled"


def _running_record(home: Path, before: set[str]) -> ExecutionRecord:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for one in set(os.listdir(home / "executions")) - before:
            path = home / "executions" / one / "record.json"
            if path.exists() and (record := record_from_json(path.read_bytes())).status == "running":
                return record
        time.sleep(0.02)
    raise AssertionError("no execution began to run")
