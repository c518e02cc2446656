"""Dagster's processes killed at random moments: its monitor and our sensor then bring executions and runs to their end, and `forge gc`
removes what the host still holds.

Each round prints its seed; `FORGE_FAULT_SEED=123` plays that one instead of one at random.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dagster as dg
import pytest

from forge_orchestration.engine import Engine
from forge_orchestration.executors.recovery import TRIAL, Reconciled
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.operations.reconcile import reconcile
from forge_orchestration.operations.workers import WorkerFolder
from forge_orchestration.orchestration.reconciliation import end_lost_runs
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import PATIENCE, leftovers, wait_until
from forge_orchestration_tests.faults import victims
from forge_orchestration_tests.integration.dagster_support import (
    LOOKED_AT_OFTEN,
    MONITOR_S,
    RUN_S,
    Deployment,
    Webserver,
    processes_of_session,
    wait_for,
)

VICTIMS = ("run worker", "keeper", "supervisor", "spawner", "code server", "web server", "daemon")
LOST, DIED = EndReason.CONTROLLER_LOST, EndReason.EXECUTOR_ERROR
STEPS = [f"step_{number}" for number in range(10)]
FEW, MANY = 1, 30


def ten_steps(folder: Path) -> Deployment:
    """A deployment whose runs are looked at every few seconds, with analyses that take a moment each."""
    made = Deployment(folder, changed=LOOKED_AT_OFTEN)
    made.build_runtime()
    for name in STEPS:
        made.add_analysis(name, "import time\ntime.sleep(0.3)\n")
    return made


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = ten_steps(tmp_path_factory.mktemp("dagster kills"))
    made.add_analysis("patient", "import time\ntime.sleep(6)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORGE_HOME", str(made.home))
        yield made


@pytest.fixture
def instance(deployment: Deployment) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(deployment.launch_folder())) as made:
        yield made


def find(kind: str, deployment: Deployment, server: Webserver, daemon: int, run_id: str) -> list[int]:
    """The processes of this kind that work for a run, now."""
    worker = WorkerFolder(load_settings(deployment.home).workers_dir, run_id).worker()
    assert worker is not None and worker.keeper is not None
    if kind == "run worker":
        return [worker.process.pid]
    if kind == "keeper":
        return [worker.keeper.pid]
    if kind == "web server":
        return [server.process.pid]
    if kind == "daemon":
        return [daemon]
    if kind == "code server":
        return [pid for pid in processes_of_session(server.process.pid) if b"grpc" in _words(pid)]
    running = [one["execution_id"] for one in deployment.records() if one["dagster_run_id"] == run_id and not one["ended_at"]]
    return victims.find(deployment.home, kind, worker.process.pid, running[0]) if running else []


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def play(deployment: Deployment, instance: dg.DagsterInstance, seed: int) -> int:
    """One round; returns how many kills hit somebody."""
    chance = random.Random(seed)
    drawn = [(chance.choice(VICTIMS), chance.uniform(0, 2.0), chance.randrange(2)) for _ in range(3)]
    print(f"seed {seed}: kill {drawn}", flush=True)
    hits: list[str] = []
    with deployment.daemon() as daemon, deployment.webserver() as server:
        runs = [server.start_assets("patient", *STEPS[:2]), server.start_assets(*STEPS)]
        for run_id in runs:  # a worker that is killed before it has begun fails its run
            wait_for("a step", lambda run_id=run_id: instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START))  # type: ignore[misc]
        for kind, after_s, which in drawn:
            time.sleep(after_s * PATIENCE)
            with suppress(AssertionError):
                found = find(kind, deployment, server, daemon.pid, runs[which])
                hits += [kind] * (bool(found) and victims.kill(found[0]))
    print("  hit:", ", ".join(hits), flush=True)
    with deployment.daemon():
        wait_for("every run's end", lambda: all(run.is_finished for run in instance.get_runs()), 3 * RUN_S)
    judge(deployment, instance, runs, may_fail=not {"supervisor", "spawner"}.isdisjoint(hits))
    see_nothing_left(deployment)
    return len(hits)


def judge(deployment: Deployment, instance: dg.DagsterInstance, runs: list[str], *, may_fail: bool) -> None:
    """Every run has the end that it should have, and nothing ran twice that had succeeded."""
    records = deployment.records()
    for run_id in runs:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        told = "\n".join(f"{event.timestamp:.2f} {event.message[:300]}" for event in instance.all_logs(run_id))
        assert run.status is dg.DagsterRunStatus.SUCCESS or (may_fail and run.status is dg.DagsterRunStatus.FAILURE), told
        own = [record for record in records if record["dagster_run_id"] == run_id]
        assert {record["end_reason"] for record in own} <= {EndReason.COMPLETED, LOST, DIED}, own
        succeeded = Counter(record["dagster_step_key"] for record in own if record["end_reason"] == EndReason.COMPLETED)
        assert set(succeeded.values()) <= {1}, f"what had succeeded was run again: {succeeded}"
        ends = Counter(
            (event.dagster_event.step_key, event.dagster_event.event_type_value)
            for event in instance.all_logs(run_id)
            if event.dagster_event and event.dagster_event.event_type_value in ("STEP_SUCCESS", "STEP_FAILURE")
        )
        assert set(ends.values()) <= {1}, ends
        if run.status is dg.DagsterRunStatus.SUCCESS:
            assert {step for step, _ in ends} == set(succeeded), (ends, succeeded)


def see_nothing_left(deployment: Deployment) -> None:
    """Once Dagster's own processes are gone: a worker ends a moment after its run, and one whose keeper was killed leaves its group."""
    engine = Engine(load_settings(deployment.home))
    wait_until("every worker's end", lambda: not any(_workers_alive(engine.settings.workers_dir)))
    report = reconcile(engine)
    # a trial of the health sensor may be there, alive, or cut short by the daemon's own end, and that one is gone for good
    assert report.problems == [] and report.closed == [] and report.alive <= 1, report
    alive = {row["analysis"] for row in engine.store.list() if not Status(row["status"]).is_final}
    assert alive <= {TRIAL}, alive
    rows = {str(row["execution_id"]): row["status"] for row in engine.store.list(limit=10_000)}
    assert rows == {record["execution_id"]: record["status"] for record in deployment.records()}
    with suppress(AssertionError):  # the next line says what is left
        wait_until("nothing left", lambda: leftovers(deployment.home) == [])
    assert leftovers(deployment.home) == []
    assert reconcile(engine) == Reconciled()


def _workers_alive(workers_dir: Path) -> Iterator[bool]:
    for folder in workers_dir.iterdir():
        worker = WorkerFolder(workers_dir, folder.name).worker()
        yield worker is not None and worker.process.is_alive


def seeds() -> list[int]:
    if "FORGE_FAULT_SEED" in os.environ:
        return [int(os.environ["FORGE_FAULT_SEED"])]
    return [int.from_bytes(os.urandom(4), "big")]


@pytest.mark.slow
@pytest.mark.timeout(600 * PATIENCE)
def test_one_round(deployment: Deployment, instance: dg.DagsterInstance) -> None:
    if "FORGE_FAULT_SEED" in os.environ:
        play(deployment, instance, seeds()[0])
        return
    while not play(deployment, instance, seeds()[0]):  # a round in which nobody was hit shows nothing
        pass


@pytest.mark.slow
@pytest.mark.timeout(2400 * PATIENCE)
def test_twenty_kills(deployment: Deployment, instance: dg.DagsterInstance) -> None:
    hits = 0
    while hits < 20:
        hits += play(deployment, instance, random.SystemRandom().randrange(1 << 32))
    print(f"{hits} kills")


def kill_the_worker(deployment: Deployment, instance: dg.DagsterInstance, server: Webserver, chance: random.Random) -> float:
    """In a run of ten steps, at a random moment of its work; returns how long its next worker took to go on, in seconds."""
    run_id = server.start_assets(*STEPS)
    folder = WorkerFolder(load_settings(deployment.home).workers_dir, run_id)
    wait_for("a step", lambda: instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START))
    time.sleep(chance.uniform(0, 2.5) * PATIENCE)
    first = folder.worker()
    assert first is not None
    try:
        os.kill(first.process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it was done sooner: nobody was hit
        assert server.wait(run_id) == "SUCCESS"
        return kill_the_worker(deployment, instance, server, chance)
    killed = time.monotonic()
    if server.status(run_id) != "SUCCESS":
        wait_for("another worker, or the end", lambda: folder.worker() != first or server.status(run_id) == "SUCCESS")
    took_s = time.monotonic() - killed
    assert server.wait(run_id) == "SUCCESS", [event.message for event in instance.all_logs(run_id)]
    wait_until("the last worker's end", lambda: (worker := folder.worker()) is not None and not worker.process.is_alive)
    judge(deployment, instance, [run_id], may_fail=False)
    return took_s


@pytest.mark.timeout(600 * PATIENCE)
@pytest.mark.parametrize("kills", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(2400 * PATIENCE)])])
def test_a_run_goes_on_after_its_worker_was_killed(deployment: Deployment, instance: dg.DagsterInstance, kills: int) -> None:
    seed = seeds()[0]
    print(f"seed {seed}")
    chance = random.Random(seed)
    with deployment.daemon(), deployment.webserver() as server:
        took = [kill_the_worker(deployment, instance, server, chance) for _ in range(kills)]
    see_nothing_left(deployment)
    print("recovered within", ", ".join(f"{one:.1f} s" for one in took))
    assert max(took) < (MONITOR_S + 5) * PATIENCE


@pytest.mark.slow
@pytest.mark.timeout(600 * PATIENCE)
def test_a_run_whose_worker_dies_before_its_first_step_is_launched_once_more(
    deployment: Deployment, instance: dg.DagsterInstance
) -> None:
    settings = load_settings(deployment.home)
    with deployment.daemon(), deployment.webserver() as server:
        run_id = server.start("step_0")
        folder = WorkerFolder(settings.workers_dir, run_id)
        worker = wait_for("its worker", folder.worker)
        worker.process.send(signal.SIGKILL)
        assert not instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START)
        wait_until("the worker's end", lambda: not worker.process.is_alive)
        assert end_lost_runs(instance, Engine(settings)) == [run_id]  # as the sensor does, within two minutes
        again = wait_for("another run", lambda: [run for run in instance.get_runs() if run.parent_run_id == run_id])
        assert server.wait(again[0].run_id) == "SUCCESS"
    assert [run.run_id for run in instance.get_runs() if run.parent_run_id == run_id] == [again[0].run_id]
    see_nothing_left(deployment)


def shown_logs(instance: dg.DagsterInstance, run_id: str) -> list[bytes | None]:
    """What the UI shows as standard output, for each time that a step of the run began."""
    begun = [entry.dagster_event for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.LOGS_CAPTURED)]
    keys = [event.logs_captured_data.file_key for event in begun if event is not None]
    return [instance.compute_log_manager.get_log_data([run_id, "compute_logs", key]).stdout for key in keys]


@pytest.mark.timeout(600 * PATIENCE)
def test_an_execution_that_outlives_its_worker_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `on_controller_loss = "continue"` what a killed worker had begun is waited for, and not begun again."""
    made = Deployment(
        tmp_path,
        '[supervision]\non_controller_loss = "continue"\n',
        changed=LOOKED_AT_OFTEN,
    )
    monkeypatch.setenv("FORGE_HOME", str(made.home))
    made.build_runtime()
    made.add_analysis("long", f"import time\nprint('begun', flush=True)\ntime.sleep({8 * PATIENCE})\nprint('done', flush=True)\n")
    settings = load_settings(made.home)
    with dg.DagsterInstance.from_config(str(made.launch_folder())) as instance, made.daemon(), made.webserver() as server:
        run_id = server.start("long")
        folder = WorkerFolder(settings.workers_dir, run_id)
        wait_for("a line of the analysis, where the UI looks for it", lambda: b"begun\n" in shown_logs(instance, run_id))
        first = folder.worker()
        assert first is not None
        os.kill(first.process.pid, signal.SIGKILL)
        assert server.wait(run_id) == "SUCCESS", [event.message for event in instance.all_logs(run_id)]
        told = [event.message for event in instance.all_logs(run_id)]
        shown = shown_logs(instance, run_id)
    record = made.record_of_run(run_id)
    assert (record["end_reason"], record["attempt"]) == (EndReason.COMPLETED, 1)
    assert any("it is not run again" in one for one in told), told
    assert shown == [b"begun\ndone\n"] * 2, "the second worker's step shows the whole log too"
    see_nothing_left(made)
