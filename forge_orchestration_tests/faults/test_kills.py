"""Controllers and supervisors killed at random moments: afterwards every record is final and nothing is left on the host."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.sandbox.process_identity import ProcessIdentity, read_supervisor
from forge_orchestration_tests.conftest import PATIENCE, leftovers, wait_until


def start(*command: str) -> subprocess.Popen[bytes]:
    """`forge exec` in the background, with small limits."""
    words = [sys.executable, "-m", "forge_orchestration.cli.main", "exec", "--memory", "64MiB", "--pids", "16", "--scratch", "8MiB"]
    return subprocess.Popen(
        [*words, "--", *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def execution_ids(home: Path) -> set[str]:
    return set(os.listdir(home / "executions"))


def record_of(home: Path, execution_id: str) -> ExecutionRecord:
    return ExecutionFolder(home / "executions", execution_id).read_record()


def assert_nothing_left(home: Path, ids: set[str]) -> None:
    """No group, mount, scratch folder, uid claim, or process of these executions."""
    # this test's own spawner, which another test may have started, is none of theirs
    # and a supervisor goes a moment after it has told its controller
    wait_until("nothing left", lambda: not [one for one in leftovers(home) if not one.startswith("process ")])
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().decode(errors="replace")
                assert not any(one in words for one in ids), words


def gc(forge) -> dict:
    done = forge("gc", "--json", timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _living(home: Path, before: set[str]) -> list[ProcessIdentity]:
    supervisors = [read_supervisor(ExecutionFolder(home / "executions", one)) for one in execution_ids(home) - before]
    return [one for one in supervisors if one is not None and one.is_alive]


def _ended(running: list[subprocess.Popen[bytes]]) -> bool:
    return all(process.poll() is not None for process in running)


@pytest.mark.slow  # `test_admission.py` has as many at once
def test_64_at_once_all_succeed(forge_home: Path) -> None:
    before = execution_ids(forge_home)
    running = [start("true") for _ in range(64)]
    assert [process.wait(timeout=120) for process in running] == [0] * 64
    ids = execution_ids(forge_home) - before
    assert len(ids) == 64
    assert {record_of(forge_home, one).end_reason for one in ids} == {EndReason.COMPLETED}
    assert_nothing_left(forge_home, ids)


def test_ten_controllers_and_ten_supervisors_killed_of_64(forge_home: Path, forge) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    before = execution_ids(forge_home)
    running = [start("sleep", "0.5") for _ in range(64)]
    moments = sorted((chance.uniform(0.0, 6.0), kind) for kind in ["controller"] * 10 + ["supervisor"] * 10)
    killed_controllers: set[int] = set()
    killed = {"controller": 0, "supervisor": 0}
    started = time.monotonic()
    for moment, kind in moments:
        while time.monotonic() < started + moment:
            time.sleep(0.01)
        if kind == "controller":
            alive = [process for process in running if process.poll() is None and process.pid not in killed_controllers]
            if alive:
                victim = chance.choice(alive)
                victim.kill()
                killed_controllers.add(victim.pid)
                killed[kind] += 1
        else:
            # on a busy machine it takes a while until there is any
            living = wait_until("a supervisor, or the end of all", lambda: _living(forge_home, before) or _ended(running), 60)
            if isinstance(living, list):
                chance.choice(living).send(signal.SIGKILL)
                killed[kind] += 1
    for process in running:
        process.wait(timeout=120)
    assert killed["controller"] > 0 and killed["supervisor"] > 0, killed
    ids = execution_ids(forge_home) - before
    # supervisors whose controller is gone end their execution themselves
    wait_until(
        "supervisors gone",
        lambda: not any((one := read_supervisor(ExecutionFolder(forge_home / "executions", i))) and one.is_alive for i in ids),
    )
    gc(forge)
    ids = execution_ids(forge_home) - before
    records = [record_of(forge_home, one) for one in ids]
    assert all(record.status.is_final for record in records), [record.status for record in records if not record.status.is_final]
    assert {record.end_reason for record in records} <= {
        EndReason.COMPLETED, EndReason.CONTROLLER_LOST, EndReason.EXECUTOR_ERROR,
    }, {record.end_reason for record in records}  # fmt: skip
    rows = {
        row["execution_id"]: row["status"] for row in json.loads(forge("executions", "list", "--limit", "500", "--json").stdout)
    }
    assert all(rows[record.execution_id] == record.status for record in records)
    assert_nothing_left(forge_home, ids)
    assert gc(forge)["closed"] == []


@pytest.mark.parametrize("victim", ["controller", "supervisor", "bubblewrap"])
def test_what_the_record_says_of_a_kill(forge_home: Path, forge, victim: str) -> None:
    before = execution_ids(forge_home)
    process = start("sleep", "60")
    wait_until("an execution", lambda: len(execution_ids(forge_home) - before) == 1)
    (one,) = execution_ids(forge_home) - before
    wait_until("a record", lambda: (forge_home / "executions" / one / "record.json").exists())
    wait_until("running", lambda: record_of(forge_home, one).status == "running")
    supervisor = read_supervisor(ExecutionFolder(forge_home / "executions", one))
    assert supervisor is not None
    if victim == "controller":
        process.kill()
    elif victim == "supervisor":
        supervisor.send(signal.SIGKILL)
    else:
        children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
    status = process.wait(timeout=60 * PATIENCE)
    wait_until("the supervisor's end", lambda: not supervisor.is_alive)
    gc(forge)
    record = record_of(forge_home, one)
    expected = {
        "controller": (EndReason.CONTROLLER_LOST, -signal.SIGKILL),
        "supervisor": (EndReason.EXECUTOR_ERROR, 5),
        "bubblewrap": (EndReason.EXECUTOR_ERROR, 5),
    }[victim]
    assert (record.end_reason, status) == expected
    assert_nothing_left(forge_home, {one})


def test_a_spawner_that_dies_is_replaced(forge_home: Path) -> None:
    import forge_orchestration
    from forge_orchestration.executors.local import LocalExecutor

    assert forge_orchestration.run(["true"]).succeeded
    spawner = next(one for hello, one in LocalExecutor._spawners.items() if one.is_alive and not hello.contained)
    os.kill(spawner.pid, signal.SIGKILL)
    os.waitid(os.P_PID, spawner.pid, os.WEXITED | os.WNOWAIT)

    assert forge_orchestration.run(["true"]).succeeded
