"""The health sensor's ticks, with the real checks and with checks that fail."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Sequence

import dagster as dg
import pytest

from forge_orchestration.model.health import CheckResult
from forge_orchestration.orchestration import health
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.integration.dagster_support import Deployment

HOST = dg.AssetKey(["host", socket.gethostname()])
RUNTIME = dg.AssetKey(["runtime", "forge-python"])


@pytest.fixture
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(tmp_path_factory.mktemp("health"))


def tick(defs: dg.Definitions, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    """One tick, its events stored as the daemon would."""
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    result = defs.resolve_sensor_def("forge_health")(context)
    assert isinstance(result, dg.SensorResult)
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    return result


def evaluations(result: dg.SensorResult) -> dict[dg.AssetKey, dg.AssetCheckEvaluation]:
    return {event.asset_key: event for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)}


def test_the_sensor_runs_by_default_and_declares_what_it_reports(deployment: Deployment) -> None:
    defs = health.health_definitions(load_settings(deployment.home), ["forge-python"])
    sensor = defs.resolve_sensor_def("forge_health")
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 300
    assert {spec.key for spec in defs.resolve_all_asset_specs()} == {HOST, RUNTIME}
    declared = {key.asset_key for checks in defs.asset_checks or () for key in checks.check_keys}
    assert declared == {HOST, RUNTIME}


def test_a_tick_with_the_real_checks_sees_a_runtime_break_and_heal(deployment: Deployment) -> None:
    deployment.build_runtime()
    defs = health.health_definitions(load_settings(deployment.home), ["forge-python"])
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(defs, instance)
        assert first.run_requests == []
        assert set(evaluations(first)) == {HOST, RUNTIME}
        assert evaluations(first)[RUNTIME].passed, evaluations(first)[RUNTIME].description
        assert instance.get_latest_materialization_event(RUNTIME) is not None

        built = deployment.home / "runtimes/forge-python"
        interpreter_settings = next(built.glob("*/prefix/pyvenv.cfg"))
        original = interpreter_settings.read_bytes()
        interpreter_settings.chmod(0o644)
        interpreter_settings.write_bytes(original + b"include-system-site-packages = true\n")
        tampered = tick(defs, instance, first.cursor)
        assert not evaluations(tampered)[RUNTIME].passed
        assert evaluations(tampered)[RUNTIME].severity is dg.AssetCheckSeverity.ERROR
        assert "forge runtimes repair forge-python" in (evaluations(tampered)[RUNTIME].description or "")

        shutil.rmtree(built)
        missing = tick(defs, instance, tampered.cursor)
        assert evaluations(missing)[RUNTIME].severity is dg.AssetCheckSeverity.WARN
        assert "forge runtimes build forge-python" in (evaluations(missing)[RUNTIME].description or "")

        deployment.build_runtime()
        healed = tick(defs, instance, missing.cursor)
        assert evaluations(healed)[RUNTIME].passed
        versions = [
            event.tags["dagster/data_version"] for event in healed.asset_events if isinstance(event, dg.AssetMaterialization)
        ]
        assert versions == [json.loads(first.cursor or "")["forge-python"]["version"]], "the same lock, the same content"


def test_what_has_not_changed_is_reported_once_an_hour(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr(health.time, "time", lambda: now[0])
    monkeypatch.setattr(health, "run_checks", lambda settings, targets=None: checks("free space is 17 GiB"))
    defs = health.health_definitions(load_settings(deployment.home), ["forge-python"])
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(defs, instance)
        now[0] += 300
        monkeypatch.setattr(health, "run_checks", lambda settings, targets=None: checks("free space is 16 GiB"))
        second = tick(defs, instance, first.cursor)
        now[0] += 3600
        third = tick(defs, instance, second.cursor)
    assert len(first.asset_events) == 4
    assert second.asset_events == []
    assert set(evaluations(third)) == {HOST, RUNTIME}
    assert not any(isinstance(event, dg.AssetMaterialization) for event in third.asset_events)


def test_a_warning_is_no_error_and_nothing_checked_is_not_healthy(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    warning = CheckResult(name="space", target="host", passed=False, severity="warning", finding="Little space.", remedy="forge gc")
    monkeypatch.setattr(health, "run_checks", lambda settings, targets=None: [warning])
    defs = health.health_definitions(load_settings(deployment.home), ["forge-python"])
    with dg.DagsterInstance.ephemeral() as instance:
        seen = evaluations(tick(defs, instance))
    assert seen[HOST].severity is dg.AssetCheckSeverity.WARN
    assert seen[HOST].description == "space: Little space. Remedy: forge gc"
    assert not seen[RUNTIME].passed


def test_the_checks_can_be_executed_as_a_run_for_one_target(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str] | None] = []

    def fake(settings: object, targets: Sequence[str] | None = None) -> list[CheckResult]:
        asked.append(targets)
        return checks("fine")

    monkeypatch.setattr(health, "run_checks", fake)
    defs = health.health_definitions(load_settings(deployment.home), ["forge-python"])
    selection = dg.AssetSelection.checks(dg.AssetCheckKey(RUNTIME, health.CHECK))
    job = dg.define_asset_job("one", selection=selection)
    done = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("one").execute_in_process()
    assert [found.asset_key for found in done.get_asset_check_evaluations()] == [RUNTIME]
    assert asked == [["forge-python"]]


def checks(finding: str) -> list[CheckResult]:
    return [
        CheckResult(name="space", target="host", passed=True, finding=finding),
        CheckResult(name="seal", target="forge-python", passed=True, finding="as sealed"),
    ]
