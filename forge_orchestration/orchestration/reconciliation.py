"""Reconciliation as a sensor: what killed processes left is put right without anyone asking for it.

Its ticks in the UI say what was done, its cursor what was done last; a tick that could not put something right is a failed one.
It starts no runs. It ends those whose process was killed and whom Dagster takes for running: a code server sees the end of the
processes that it started itself, and only while it lives.
"""

import json
import time

import dagster as dg
import msgspec

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ExecutorError, ForgeError
from forge_orchestration.executors.recovery import Reconciled, controller_lives
from forge_orchestration.operations.reconcile import reconcile
from forge_orchestration.operations.take_over import cancel_run
from forge_orchestration.operations.workers import WorkerFolder
from forge_orchestration.settings import Settings

EVERY_S = 120
_LOST = "The process of this run was killed. Its executions have ended, and nothing of them is left: launch it again."
_UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def reconciliation_definitions(settings: Settings) -> dg.Definitions:
    """The sensor `forge_reconcile`."""

    @dg.sensor(
        name="forge_reconcile",
        minimum_interval_seconds=EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Closes executions and runs whose process was killed, and removes what they left. Starts no runs.",
    )
    def forge_reconcile(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        engine = Engine(settings)
        report = reconcile(engine)
        runs = end_lost_runs(context.instance, engine)
        done = {**msgspec.to_builtins(report), "runs": runs, "at": time.time()}
        del done["alive"]
        if report.problems:
            raise ExecutorError(f"Not everything could be put right: {' '.join(report.problems)}", "See: forge gc")
        found_something = any(value for key, value in done.items() if key != "at")
        return dg.SensorResult(
            skip_reason=_sentence(report, runs), cursor=json.dumps(done) if found_something else context.cursor or None
        )

    return dg.Definitions(sensors=[forge_reconcile])


def end_lost_runs(instance: dg.DagsterInstance, engine: Engine) -> list[str]:
    """Report runs that Dagster takes for running, and whose process was killed, as failed or canceled; returns their ids.

    Not those that Dagster's monitor will resume in another process.
    """
    ended = []
    for listed in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        if not _is_lost(listed, instance, engine):
            continue
        cancel_run(engine, listed.run_id)  # settings may let executions outlive their controller
        run = instance.get_run_by_id(listed.run_id)  # as it is now that its process is known to be dead
        if run is None or run.is_finished:
            continue
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, _LOST)
        else:
            instance.report_run_failed(run, _LOST)
        ended.append(run.run_id)
    return ended


def _is_lost(run: dg.DagsterRun, instance: dg.DagsterInstance, engine: Engine) -> bool:
    """Whether the process that executes a run's steps is known, is dead, and will not be followed by another."""
    run_id = run.run_id
    try:
        worker = WorkerFolder(engine.settings.workers_dir, run_id).worker()
    except ForgeError:  # it cannot be told, and is no reason to leave the other runs
        return False
    if worker is not None:
        # what had begun is the monitor's to resume, or to fail when it was resumed often enough: it may be starting the last one now
        watched = run.status is dg.DagsterRunStatus.STARTED and worker.keeper is not None and instance.run_monitoring_enabled
        return not worker.process.is_alive and not watched
    # an executor that is not Forge's: known by the executions that were started for the run
    controllers = engine.store.controllers_of_run(run_id)
    if not controllers or any(controller_lives(one) for one in controllers):
        return False
    return _process_of(run_id, instance) in {pid for pid, _ in controllers}


def _process_of(run_id: str, instance: dg.DagsterInstance) -> int | None:
    """The process in which Dagster said last that it executes the run; with step processes of their own it is not the controller."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, ascending=False).records
    for record in records:
        event = record.event_log_entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event is not None else None
        if pid is not None:
            return int(str(pid.value))
    return None


def _sentence(report: Reconciled, runs: list[str]) -> str:
    counts = {
        "closed": report.closed,
        "indexed": report.indexed,
        "leftovers removed": report.removed,
        "published": report.published,
        "runs ended": runs,
    }
    told = [f"{len(done)} {what}" for what, done in counts.items() if done]
    if not told:
        return f"Nothing was left by killed processes; {report.alive} alive."
    return f"{', '.join(told)}; {report.alive} alive: {'; '.join([*report.closed, *report.indexed, *report.removed, *report.published, *runs])}."
