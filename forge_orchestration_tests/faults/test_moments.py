"""Certain moments that random kills seldom meet, each met on purpose."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

import forge_orchestration
from forge_orchestration.engine import Engine
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executors.local import LocalExecutor
from forge_orchestration.executors.recovery import Reconciled
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.operations.reconcile import reconcile
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import Forge, wait_until
from forge_orchestration_tests.faults import victims
from forge_orchestration_tests.faults.judgement import nothing_left, of_dead_supervisors


def own_spawner() -> int:
    """Of this process."""
    return next(one.pid for hello, one in LocalExecutor._spawners.items() if one.is_alive and not hello.contained)


def test_a_supervisor_that_is_killed_while_it_stands_by_costs_no_execution(forge_home: Path) -> None:
    assert forge_orchestration.run(["true"]).succeeded
    # the supervisor of the execution goes a moment after it has told its controller
    (standby,) = wait_until("a standby alone", lambda: found if len(found := victims.children(own_spawner())) == 1 else [])
    os.kill(standby, signal.SIGKILL)
    wait_until("its end", lambda: standby not in victims.children(own_spawner()))
    assert forge_orchestration.run(["true"]).succeeded
    reconcile(Engine(load_settings()))
    nothing_left("of it", lambda: of_dead_supervisors(forge_home))


def test_an_execution_that_was_given_up_never_begins(forge_home: Path, forge: Forge) -> None:
    """Its supervisor comes to it too late, as on a host that is very busy: by then the record is final."""
    assert forge_orchestration.run(["true"]).succeeded
    before = forge.executions()
    os.kill(own_spawner(), signal.SIGSTOP)
    thread, records = _running("true")
    try:
        plan = wait_until("a plan", lambda: [one for one in forge.executions() - before if _has_plan(forge_home, one)])
        folder = ExecutionFolder(forge_home / "executions", plan[0])
        with folder.locked():
            os.kill(own_spawner(), signal.SIGCONT)
            given_up = EndReason.CONTROLLER_LOST
            changes = {"status": given_up.status, "end_reason": given_up, "message": "Given up."}
            folder.write_record(ExecutionRecord(execution_id=folder.id, analysis="exec", folder=str(folder.path), **changes))
    finally:
        os.kill(own_spawner(), signal.SIGCONT)
        thread.join(60)
    assert [record.message for record in records] == ["Given up."]
    assert folder.read_record().message == "Given up." and folder.read_record().started_at is None


def _running(*command: str) -> tuple[threading.Thread, list[ExecutionRecord]]:
    """It runs in a thread, which then puts its record into the list."""
    records: list[ExecutionRecord] = []
    thread = threading.Thread(target=lambda: records.append(forge_orchestration.run(command)))
    thread.start()
    return thread, records


def _has_plan(home: Path, execution_id: str) -> bool:
    return (home / "executions" / execution_id / "plan.json").exists()


def test_what_is_canceled_at_any_moment_is_canceled_and_leaves_no_helper(forge_home: Path) -> None:
    """Also while bubblewrap sets up: its inner process then waits for ever for a word of the outer one."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    assert forge_orchestration.run(["true"]).succeeded
    ends = set()
    for _ in range(60):
        cancel = threading.Event()
        timer = threading.Timer(chance.uniform(0, 0.03), cancel.set)
        timer.start()
        ends.add(forge_orchestration.run(["sleep", "60"], limits={"grace": "0s"}, cancel=cancel).end_reason)
        timer.join()
    assert ends == {EndReason.CANCELED}
    nothing_left("of them", lambda: of_dead_supervisors(forge_home))


@pytest.mark.parametrize("rounds", [5, pytest.param(15, marks=pytest.mark.slow)])
@pytest.mark.parametrize("victim", ["bubblewrap", "bubblewrap inside", "entrant"])
def test_a_helper_that_is_killed_while_the_sandbox_is_set_up_ends_the_execution(
    forge_home: Path, forge: Forge, victim: str, rounds: int
) -> None:
    """Never a supervisor that waits for ever, nor a helper that does."""
    assert forge_orchestration.run(["true"]).succeeded
    for _ in range(rounds):
        before = forge.executions()
        thread, records = _running("sleep", "60")
        killed = False
        while thread.is_alive():
            for one in forge.executions() - before:
                found = victims.find(forge_home, victim, os.getpid(), one)
                killed = killed or (bool(found) and victims.kill(found[0]))
            time.sleep(0.0002)
        assert killed and len(records) == 1
        assert records[0].end_reason in (EndReason.SANDBOX_UNAVAILABLE, EndReason.EXECUTOR_ERROR, EndReason.SIGNALED)
    nothing_left("of them", lambda: of_dead_supervisors(forge_home))


def test_an_output_folder_that_a_dead_supervisor_was_filling_is_closed_with_what_is_whole(forge_home: Path, forge: Forge) -> None:
    script = "cd $FORGE_OUTPUTS; for i in 1 2 3 4 5 6 7 8; do head -c 20000000 /dev/zero > $i; done"
    with forge.started("exec", "--scratch", "200MiB", "--output", "*", "--", "sh", "-c", script) as process:
        before = forge.executions()
        one = wait_until("an execution", lambda: (forge.executions() - before) or None).pop()
        folder = ExecutionFolder(forge_home / "executions", one)
        wait_until("an output", lambda: len(list(folder.outputs.glob("*"))) >= 2, 60)
        supervisor = victims.find(forge_home, "supervisor", process.pid, one)
        assert victims.kill(supervisor[0])
        assert process.wait(60) == 5
    record = folder.read_record()
    assert record.end_reason is EndReason.EXECUTOR_ERROR
    assert 2 <= len(record.outputs) < 8 and {output.bytes for output in record.outputs} == {20_000_000}
    assert {output.path for output in record.outputs} == {path.name for path in folder.outputs.iterdir()}
    assert [name for name in os.listdir(folder.path) if name.startswith(".")] == []
    assert reconcile(Engine(load_settings())) == Reconciled()
