"""Dagster's processes killed at random moments: the sensor alone then brings executions and runs to their end.

Each round prints its seed; `FORGE_FAULT_SEED=123` plays that one instead of one at random.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import pytest

from forge_orchestration.engine import Engine
from forge_orchestration.executors.recovery import TRIAL, Reconciled
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.operations.reconcile import reconcile
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import leftovers
from forge_orchestration_tests.faults import victims
from forge_orchestration_tests.integration.dagster_support import (
    REPOSITORY,
    Deployment,
    Webserver,
    end_session,
    processes_of_session,
    wait_for,
)

VICTIMS = ("run worker", "supervisor", "spawner", "code server", "web server")
LOST, DIED = EndReason.CONTROLLER_LOST, EndReason.EXECUTOR_ERROR


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("dagster kills"))
    made.build_runtime()
    made.add_analysis("patient", "import time\ntime.sleep(300)\n")
    made.add_analysis("brief", "import time\ntime.sleep(1)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORGE_HOME", str(made.home))
        yield made


@contextmanager
def daemon(deployment: Deployment) -> Iterator[subprocess.Popen[bytes]]:
    """Dagster's daemon, which ticks sensors; killed with all that it started."""
    command = [str(Path(sys.executable).with_name("dagster-daemon")), "run", "-w", "workspace.yaml"]
    with (deployment.home.parent / "daemon.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env={**deployment.environment, "DAGSTER_HOME": str(REPOSITORY)}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        end_session(process.pid)
        process.wait(30)


def find(kind: str, deployment: Deployment, server: Webserver, execution_id: str) -> list[int]:
    """The processes of this kind."""
    web = server.process.pid
    worker = victims.controller_of(deployment.home, execution_id)
    assert worker is not None
    if kind == "web server":
        return [web]
    if kind == "run worker":
        return [worker]
    if kind == "code server":
        parents = {pid for pid in processes_of_session(web) if worker in victims.children(pid)}
        return list(parents - {web, worker})
    return victims.find(deployment.home, kind, worker, execution_id)


def play(deployment: Deployment, seed: int) -> int:
    """One round; returns how many kills hit somebody."""
    chance = random.Random(seed)
    drawn = [(chance.choice(VICTIMS), chance.uniform(0, 1.5), chance.random()) for _ in range(3)]
    daemon_dies_after_s = chance.choice((None, chance.uniform(2, 12)))
    print(f"seed {seed}: kill {drawn}, the daemon after {daemon_dies_after_s} s", flush=True)
    before = {record["execution_id"] for record in deployment.records()}
    hits = 0
    with deployment.webserver() as server:
        runs = [server.start("patient"), server.start("brief")]
        executions = wait_for("two executions", lambda: _running(deployment, before))
        for kind, after_s, pick in drawn:
            time.sleep(after_s)
            with suppress(AssertionError):
                found = find(kind, deployment, server, executions[int(pick * len(executions))])
                hits += bool(found) and victims.kill(found[0])
    # what was left of the deployment's processes is killed now, run workers included
    if daemon_dies_after_s is not None:
        with daemon(deployment) as first, suppress(subprocess.TimeoutExpired):
            first.wait(daemon_dies_after_s)
        hits += 1
    with dg.DagsterInstance.from_config(str(REPOSITORY)) as instance, daemon(deployment):
        wait_for("every run's end", lambda: all(run.is_finished for run in instance.get_runs()))
        wait_for("a tick", lambda: _ticks(instance))
        told = [tick.skip_reason for tick in _ticks(instance)]
    assert all(told), "each tick says what it did"
    _judge(deployment, before, runs)
    return hits


def _running(deployment: Deployment, before: set[str]) -> list[str] | None:
    found = [record["execution_id"] for record in deployment.records() if record["execution_id"] not in before]
    alive = [one for one in found if victims.members(deployment.home, one)]
    return sorted(found) if len(found) == 2 and alive else None


def _ticks(instance: dg.DagsterInstance) -> list[object]:
    """Finished ticks of `forge_reconcile`."""
    states = [state for state in instance.all_instigator_state() if state.instigator_name == "forge_reconcile"]
    return [
        tick
        for state in states
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
        if tick.status.value in ("SKIPPED", "FAILURE", "SUCCESS")
    ]


def _judge(deployment: Deployment, before: set[str], runs: list[str]) -> None:
    records = {record["dagster_run_id"]: record for record in deployment.records() if record["execution_id"] not in before}
    assert set(records) == set(runs)
    patient, brief = (records[run] for run in runs)
    assert patient["end_reason"] in (LOST, DIED), patient["message"]
    assert brief["end_reason"] in (LOST, DIED, EndReason.COMPLETED), brief["message"]
    engine = Engine(load_settings(deployment.home))
    report = reconcile(engine)
    alive = {row["analysis"] for row in engine.store.list() if not Status(row["status"]).is_final}
    # a trial of the health sensor may be there, alive, or cut short by the daemon's own end, and that one is gone for good
    assert report == Reconciled(removed=report.removed, alive=report.alive) and report.alive <= 1, report
    assert alive <= {TRIAL}, alive
    assert all(line.startswith("trial") for line in report.removed), report
    rows = {str(row["execution_id"]): row["status"] for row in engine.store.list(limit=1000)}
    assert rows == {record["execution_id"]: record["status"] for record in deployment.records()}
    wait_for("nothing left", lambda: leftovers(deployment.home) == [])
    assert reconcile(engine) == Reconciled()


def seeds() -> list[int]:
    if "FORGE_FAULT_SEED" in os.environ:
        return [int(os.environ["FORGE_FAULT_SEED"])]
    return [int.from_bytes(os.urandom(4), "big")]


@pytest.mark.timeout(600)
def test_one_round(deployment: Deployment) -> None:
    for seed in seeds():
        play(deployment, seed)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills(deployment: Deployment) -> None:
    hits = 0
    while hits < 20:
        hits += play(deployment, random.SystemRandom().randrange(1 << 32))
    print(json.dumps({"kills": hits}))


def test_a_run_worker_that_is_killed_ends_its_execution_and_its_run(deployment: Deployment) -> None:
    """While its code server lives, without a sensor."""
    before = {record["execution_id"] for record in deployment.records()}
    with deployment.webserver() as server:
        run_id = server.start("patient")
        execution_id = wait_for("an execution", lambda: _of_run(deployment, run_id))
        wait_for("running", lambda: bool(victims.members(deployment.home, execution_id)))
        worker = victims.controller_of(deployment.home, execution_id)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        assert server.wait(run_id) == "FAILURE"
        record = wait_for("the record's end", lambda: _final(deployment, execution_id))
    assert record["end_reason"] == LOST
    assert {record["execution_id"] for record in deployment.records()} - before == {execution_id}
    wait_for("nothing left", lambda: leftovers(deployment.home) == [])
    assert reconcile(Engine(load_settings(deployment.home))).indexed == [execution_id]


def _of_run(deployment: Deployment, run_id: str) -> str | None:
    return next((record["execution_id"] for record in deployment.records() if record["dagster_run_id"] == run_id), None)


def _final(deployment: Deployment, execution_id: str) -> dict | None:
    record = next(record for record in deployment.records() if record["execution_id"] == execution_id)
    return record if record["end_reason"] else None
