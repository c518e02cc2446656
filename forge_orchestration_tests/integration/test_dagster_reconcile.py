"""The sensor that reconciles: what its ticks do and say, and which runs it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ExecutorError
from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id
from forge_orchestration.executions.store import Store
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.operations.workers import Worker, WorkerFolder
from forge_orchestration.orchestration.reconciliation import reconciliation_definitions
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.process_identity import ProcessIdentity
from forge_orchestration.settings import Settings, load_settings
from forge_orchestration_tests.integration.dagster_support import Deployment

DEAD = (2**22 + 5, 17)
GONE = ProcessIdentity(pid=DEAD[0], start_time=DEAD[1], boot_id=linux.boot_id())
ALIVE = (os.getpid(), linux.start_time(os.getpid()) or 0)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    # what is the host's is other tests' too
    monkeypatch.setattr("forge_orchestration.sandbox.identity.CLAIMS", tmp_path / "no claims")
    monkeypatch.setattr("forge_orchestration.executors.admission.LEDGERS", tmp_path / "no places")
    return load_settings(Deployment(tmp_path, '[cgroup]\nparent = "forge-no-such-group"\n').home)


@pytest.fixture
def store(settings: Settings) -> Store:
    return Engine(settings).store


def tick(settings: Settings, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    sensor = reconciliation_definitions(settings).resolve_sensor_def("forge_reconcile")
    result = sensor(dg.build_sensor_context(instance=instance, cursor=cursor))
    assert isinstance(result, dg.SensorResult)
    return result


def said(result: dg.SensorResult) -> str:
    """As the UI shows it beside the tick."""
    assert isinstance(result.skip_reason, dg.SkipReason) and result.skip_reason.skip_message is not None
    return result.skip_reason.skip_message


def begun(settings: Settings, store: Store, controller: tuple[int, int], run_id: str | None = None) -> ExecutionFolder:
    """An execution of a run, as its controller has left it."""
    folder = ExecutionFolder(settings.executions_dir, new_execution_id())
    record = ExecutionRecord(
        execution_id=folder.id, analysis="a", status=Status.RUNNING, folder=str(folder.path), dagster_run_id=run_id
    )
    store.begin(record, *controller)
    folder.create()
    folder.write_record(record)
    return folder


def started_run(instance: dg.DagsterInstance, process: int, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED) -> str:
    """A run that Dagster takes for running, in `process`."""

    @dg.op
    def nothing() -> None: ...

    @dg.job
    def job() -> None:
        nothing()

    run = instance.create_run_for_job(job, status=status)
    instance.report_engine_event(f"Executing steps in process (pid: {process})", run, EngineEventData.in_process(process))
    return run.run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_it_runs_by_default_every_few_minutes(settings: Settings) -> None:
    sensor = reconciliation_definitions(settings).resolve_sensor_def("forge_reconcile")
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert 60 <= sensor.minimum_interval_seconds <= 300


def test_a_tick_with_nothing_to_do_says_so_and_keeps_its_cursor(settings: Settings, store: Store) -> None:
    begun(settings, store, ALIVE)
    with dg.DagsterInstance.ephemeral() as instance:
        result = tick(settings, instance, "before")
    assert said(result) == "Nothing was left by killed processes; 1 alive."
    assert (result.cursor, result.run_requests) == ("before", [])


def test_a_tick_closes_what_nobody_brings_to_its_end_and_says_what_it_did(settings: Settings, store: Store) -> None:
    folder = begun(settings, store, DEAD)
    with dg.DagsterInstance.ephemeral() as instance:
        result = tick(settings, instance)
    assert folder.read_record().end_reason is EndReason.CONTROLLER_LOST
    assert said(result).startswith("1 closed") and folder.id in said(result)
    assert json.loads(result.cursor or "")["closed"] == [folder.id]


def test_a_tick_that_cannot_put_something_right_fails_with_a_sentence(settings: Settings, store: Store) -> None:
    begun(settings, store, DEAD).record_path.write_text("{")
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(Exception, match="could be put right") as caught:
        tick(settings, instance)
    assert isinstance(caught.value, ExecutorError) or isinstance(caught.value.__cause__, ExecutorError)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE),
        (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED),
    ],
)
def test_a_run_whose_process_is_dead_is_ended(
    settings: Settings, store: Store, was: dg.DagsterRunStatus, becomes: dg.DagsterRunStatus
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run_id = started_run(instance, DEAD[0], was)
        begun(settings, store, DEAD, run_id)
        result = tick(settings, instance)
        assert status(instance, run_id) is becomes
        assert "1 runs ended" in said(result) and json.loads(result.cursor or "")["runs"] == [run_id]
        assert tick(settings, instance, result.cursor).cursor == result.cursor


def test_a_run_whose_process_lives_or_is_another_than_its_executions_goes_on(settings: Settings, store: Store) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        lives, elsewhere, unknown = started_run(instance, ALIVE[0]), started_run(instance, ALIVE[0]), started_run(instance, DEAD[0])
        begun(settings, store, ALIVE, lives)
        begun(settings, store, DEAD, elsewhere)  # a step in a process of its own, which may be tried again
        tick(settings, instance)
        assert {status(instance, run_id) for run_id in (lives, elsewhere, unknown)} == {dg.DagsterRunStatus.STARTED}


def test_a_run_of_which_nothing_can_be_told_keeps_no_other_from_its_end(settings: Settings, store: Store) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        torn, lost = started_run(instance, ALIVE[0]), started_run(instance, ALIVE[0])
        folder = WorkerFolder(settings.workers_dir, torn)
        folder.make()
        (folder.path / "worker.json").write_text("{")
        WorkerFolder(settings.workers_dir, lost).began(Worker(process=GONE))
        assert tick(settings, instance).cursor
        assert status(instance, torn) is dg.DagsterRunStatus.STARTED
        assert status(instance, lost) is dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize(
    ("was", "monitored", "becomes"),
    [
        (dg.DagsterRunStatus.STARTED, True, dg.DagsterRunStatus.STARTED),
        (dg.DagsterRunStatus.STARTED, False, dg.DagsterRunStatus.FAILURE),
        (dg.DagsterRunStatus.STARTING, True, dg.DagsterRunStatus.FAILURE),
        (dg.DagsterRunStatus.CANCELING, True, dg.DagsterRunStatus.CANCELED),
    ],
)
def test_a_launched_run_is_the_monitors_once_it_has_started(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, was: dg.DagsterRunStatus, monitored: bool, becomes: dg.DagsterRunStatus
) -> None:
    """Whatever it has left of its attempts: it may be starting the last one at this moment."""
    monkeypatch.setattr(dg.DagsterInstance, "run_monitoring_enabled", property(lambda _: monitored))
    with dg.DagsterInstance.ephemeral() as instance:
        run_id = started_run(instance, ALIVE[0], was)
        WorkerFolder(settings.workers_dir, run_id).began(Worker(process=GONE, keeper=GONE))
        tick(settings, instance)
        assert status(instance, run_id) is becomes
