"""A step's edges: errors of ours, backends that do not answer, and interrupts."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from forge_orchestration.engine import Engine
from forge_orchestration.errors import BackendUnavailableError, HostError
from forge_orchestration.model.capacity import Capacity
from forge_orchestration.model.guard import GuardFacts, GuardFinding
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisDefinition, AnalysisSpec
from forge_orchestration.orchestration import analysis_assets, step
from forge_orchestration.settings import Settings

Run = Callable[[AnalysisSpec, threading.Event], ExecutionRecord]


def ended(reason: EndReason, message: str = "") -> ExecutionRecord:
    return ExecutionRecord(
        execution_id="20260102T030405-0123456789", analysis="x", status=reason.status, end_reason=reason, message=message
    )


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Run], dg.ExecuteInProcessResult]:
    """Runs an analysis' asset, with a function in the place of the engine."""
    maximum = Limits(
        memory_bytes=4 * 2**30, cpus=4, pids=1000, wall_time_s=86_400, grace_s=60, scratch_bytes=2**40, log_bytes=2**30
    )
    settings = Settings(home=tmp_path, maximum=maximum, capacity=Capacity(memory_bytes=4 * 2**30, pids=1000))
    definition = AnalysisDefinition(name="x", folder=str(tmp_path), command=("true",))
    asset = analysis_assets.analysis_asset(definition, settings, ["forge-python"], ["local"])

    def run(behave: Run) -> dg.ExecuteInProcessResult:
        class FakeEngine(Engine):
            def run(self, spec: AnalysisSpec, *, cancel: threading.Event | None = None, **_: object) -> ExecutionRecord:
                assert cancel is not None
                return behave(spec, cancel)

        monkeypatch.setattr(step, "Engine", FakeEngine)
        monkeypatch.setattr(step, "TRANSIENT_WAIT_S", 0)
        job = dg.define_asset_job("job", selection=[asset.key])
        defs = dg.Definitions(assets=[asset], jobs=[job], executor=dg.in_process_executor)
        return defs.resolve_job_def("job").execute_in_process(raise_on_error=False)

    return run


def failure_of(result: dg.ExecuteInProcessResult) -> dg.StepFailureData:
    data: dg.StepFailureData = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    return data


def test_an_error_of_ours_is_a_failure_with_its_hint_and_no_retry(execute: Callable[[Run], dg.ExecuteInProcessResult]) -> None:
    def behave(spec: AnalysisSpec, cancel: threading.Event) -> ExecutionRecord:
        raise HostError("There is no bubblewrap.", "Install it: apt install bubblewrap")

    result = execute(behave)
    failure = failure_of(result).user_failure_data
    assert failure is not None
    assert failure.description == "There is no bubblewrap. Install it: apt install bubblewrap"
    assert not any(event.is_step_up_for_retry for event in result.all_events)


def test_a_backend_that_does_not_answer_is_tried_again(execute: Callable[[Run], dg.ExecuteInProcessResult]) -> None:
    calls: list[AnalysisSpec] = []

    def behave(spec: AnalysisSpec, cancel: threading.Event) -> ExecutionRecord:
        calls.append(spec)
        if len(calls) == 1:
            raise BackendUnavailableError("The queue does not answer.")
        return ended(EndReason.COMPLETED)

    result = execute(behave)
    assert result.success
    assert len(calls) == 2
    assert calls[0].dagster_run_id == result.run_id
    assert calls[0].dagster_step_key == "run_x"


@pytest.mark.parametrize("reason", [reason for reason in EndReason if reason is not EndReason.COMPLETED])
def test_every_other_end_fails_the_step(execute: Callable[[Run], dg.ExecuteInProcessResult], reason: EndReason) -> None:
    result = execute(lambda spec, cancel: ended(reason, f"It ended so: {reason}."))
    failure = failure_of(result).user_failure_data
    assert failure is not None
    assert failure.description == f"It ended so: {reason}."
    assert failure.metadata["end_reason"].value == reason.value


@pytest.mark.parametrize("reason", [EndReason.COMPLETED, EndReason.MEMORY])
def test_findings_of_what_is_guarded_are_warnings_in_the_log_of_the_run(
    execute: Callable[[Run], dg.ExecuteInProcessResult], capfd: pytest.CaptureFixture[str], reason: EndReason
) -> None:
    finding = GuardFinding(target="/srv/genome.fa", what="has other content", verdict="changed")
    result = execute(lambda spec, cancel: ended(reason).with_guard(GuardFacts(paths=["/srv"], findings=[finding])))
    assert result.success is (reason is EndReason.COMPLETED), "findings change nothing of that"
    logged = [line for line in capfd.readouterr().err.splitlines() if "changed: /srv/genome.fa: has other content" in line]
    assert len(logged) == 1 and "WARNING" in logged[0]


def test_an_interrupt_is_passed_to_the_engine_and_ends_the_step(execute: Callable[[Run], dg.ExecuteInProcessResult]) -> None:
    seen: list[bool] = []

    def behave(spec: AnalysisSpec, cancel: threading.Event) -> ExecutionRecord:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # an impatient person presses it twice
        seen.append(cancel.wait(10))
        return ended(EndReason.CANCELED, "It was canceled.")

    failure = failure_of(execute(behave))
    assert seen == [True]
    assert failure.user_failure_data is None, "interrupted, not failed"
    assert failure.error is not None
    assert failure.error.cls_name == "DagsterExecutionInterruptedError"


def test_signal_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with step.cancellation(None) as event:
        os.kill(os.getpid(), signal.SIGTERM)
        assert event.wait(10)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_touched() -> None:
    seen: list[bool] = []

    def look() -> None:
        with step.cancellation(None) as event:
            seen.append(event.is_set())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(10)
    assert seen == [False]


def test_statuses_of_the_fake_records_are_real() -> None:
    assert ended(EndReason.COMPLETED).succeeded
    assert ended(EndReason.HOST_PRESSURE).status is Status.LOST
