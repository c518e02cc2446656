"""The health sensors' ticks and the runs that they ask for, with the real checks and with checks that fail."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import dagster as dg
import pytest

from forge_orchestration.engine import Engine
from forge_orchestration.errors import SpecError
from forge_orchestration.model.health import CheckResult
from forge_orchestration.operations.inspection import Inspection
from forge_orchestration.orchestration import full_verification, health, health_sensor, lookout
from forge_orchestration.orchestration.health_verdict import FULL, QUICK
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import wait_until
from forge_orchestration_tests.integration.dagster_support import Deployment
from forge_orchestration_tests.webhook_server import WebhookServer

HOST = dg.AssetKey(["host", socket.gethostname()])
STORAGE = dg.AssetKey(["storage", socket.gethostname()])
RUNTIME = dg.AssetKey(["runtime", "forge-python"])
LAB = dg.AssetKey(["database", "lab_s"])


@pytest.fixture
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(tmp_path_factory.mktemp("health"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def server() -> Iterator[WebhookServer]:
    with WebhookServer() as made:
        yield made


def definitions(deployment: Deployment) -> dg.Definitions:
    return health.health_definitions(load_settings(deployment.home))


def configure(deployment: Deployment, text: str) -> None:
    (deployment.home / "settings.toml").write_text(text)


class Sensor:
    """Ticks one after the other, with the cursor of the one before; events are stored as the daemon would."""

    def __init__(self, defs: dg.Definitions, instance: dg.DagsterInstance) -> None:
        self.definition = defs.resolve_sensor_def("forge_health")
        self.repository = defs.get_repository_def()
        self.instance = instance
        self.cursor: str | None = None

    def tick(self) -> dg.SensorResult:
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor, repository_def=self.repository)
        result = self.definition(context)
        assert isinstance(result, dg.SensorResult)
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        self.cursor = result.cursor
        return result


def evaluations(result: dg.SensorResult) -> dict[dg.AssetKey, dg.AssetCheckEvaluation]:
    return {event.asset_key: event for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)}


def execute(
    defs: dg.Definitions, job: str, instance: dg.DagsterInstance, config: object = None, **selected: object
) -> dg.ExecuteInProcessResult:
    resolved = defs.resolve_job_def(job)
    return resolved.execute_in_process(instance=instance, run_config=config, raise_on_error=False, **selected)


def edit(deployment: Deployment) -> Path:
    """Something that the runtime's owner did not do; the file's path in the prefix."""
    path = next(deployment.home.glob("runtimes/forge-python/*/prefix/pyvenv.cfg"))
    path.write_bytes(path.read_bytes() + b"include-system-site-packages = true\n")
    return path


def result(
    passed: bool,
    target: str = "forge-python",
    name: str = "seal",
    severity: Literal["error", "warning"] = "error",
    finding: str = "it",
) -> CheckResult:
    return CheckResult(
        name=name, target=target, passed=passed, severity=severity, finding=finding, remedy="" if passed else "do it"
    )


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[CheckResult]]:
    """What the checks find, by target, instead of looking; those that are not named are well."""
    told: dict[str, list[CheckResult]] = {}

    def inspect(engine: Engine, target: str, *, full: bool) -> Inspection:
        results = told.get(target, [result(True, target)])
        return Inspection(target=target, results=results, findings=sum(not one.passed for one in results), took_s=0.25, files=7)

    for module in (health, lookout, full_verification):
        monkeypatch.setattr(module, "inspect", inspect)
    return told


def test_what_is_declared_by_default(deployment: Deployment) -> None:
    configure(deployment, "[protected_databases]\n\"lab's\" = 'sqlite:////nowhere'\n")
    defs = definitions(deployment)
    sensor = defs.resolve_sensor_def("forge_health")
    assert (sensor.default_status, sensor.minimum_interval_seconds) == (dg.DefaultSensorStatus.RUNNING, 300)
    schedule = defs.resolve_schedule_def("forge_verify_in_full")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    declared = {key for checks in defs.asset_checks or () for key in checks.check_keys}
    assert {key.asset_key for key in declared if key.name == QUICK} >= {HOST, STORAGE, RUNTIME, LAB}
    assert {key.asset_key for key in declared if key.name == FULL} >= {STORAGE, RUNTIME, LAB}
    assert dg.AssetCheckKey(HOST, FULL) not in declared, "a host cannot be read"
    assert {spec.key for spec in defs.resolve_all_asset_specs()} == {key.asset_key for key in declared}


def test_what_the_settings_say(deployment: Deployment) -> None:
    configure(deployment, "[health]\nquick_every_s = 60\nfull_at = '30 2 * * 1'\ntime_zone = 'Europe/Berlin'\n")
    defs = definitions(deployment)
    assert defs.resolve_sensor_def("forge_health").minimum_interval_seconds == 60
    schedule = defs.resolve_schedule_def("forge_verify_in_full")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 2 * * 1", "Europe/Berlin")
    configure(deployment, "[health]\nfull_at = ''\n")
    assert not definitions(deployment).schedules


def test_a_database_that_is_called_as_a_runtime_is_refused(deployment: Deployment) -> None:
    configure(deployment, "[protected_databases]\nforge-python = 'sqlite:////nowhere'\n")
    with pytest.raises(SpecError, match="forge-python"):
        definitions(deployment)


def test_a_tick_with_the_real_checks_sees_a_runtime_break_and_heal(deployment: Deployment, instance: dg.DagsterInstance) -> None:
    deployment.build_runtime()
    sensor = Sensor(definitions(deployment), instance)
    first = sensor.tick()
    assert first.run_requests == []
    seen = evaluations(first)
    assert {HOST, RUNTIME} <= set(seen)
    assert seen[RUNTIME].passed, seen[RUNTIME].description
    assert seen[RUNTIME].metadata["files"].value > 10 and seen[RUNTIME].metadata["findings"].value == 0
    assert seen[HOST].metadata["seconds"].value > 0 and "files" not in seen[HOST].metadata
    assert instance.get_latest_materialization_event(RUNTIME) is not None

    edit(deployment)
    tampered = evaluations(sensor.tick())
    assert list(tampered) == [RUNTIME]
    assert not tampered[RUNTIME].passed
    assert tampered[RUNTIME].severity is dg.AssetCheckSeverity.ERROR
    assert tampered[RUNTIME].metadata["findings"].value == 1
    for words in ("pyvenv.cfg was edited", "forge runtimes repair forge-python"):
        assert words in (tampered[RUNTIME].description or "")

    shutil.rmtree(deployment.home / "runtimes/forge-python")
    missing = evaluations(sensor.tick())
    assert missing[RUNTIME].severity is dg.AssetCheckSeverity.WARN
    assert "forge runtimes build forge-python" in (missing[RUNTIME].description or "")

    deployment.build_runtime()
    healed = sensor.tick()
    assert evaluations(healed)[RUNTIME].passed
    versions = [event.tags["dagster/data_version"] for event in healed.asset_events if isinstance(event, dg.AssetMaterialization)]
    before = [event for event in first.asset_events if isinstance(event, dg.AssetMaterialization) and event.asset_key == RUNTIME]
    assert versions == [before[0].tags["dagster/data_version"]], "the same lock, the same content"


def test_what_has_not_changed_is_reported_once_an_hour(
    deployment: Deployment, instance: dg.DagsterInstance, found: dict[str, list[CheckResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr(health_sensor.time, "time", lambda: now[0])
    sensor = Sensor(definitions(deployment), instance)
    found["host"] = [result(False, "host", "disk", "warning", "17.5 GiB are free")]
    first = sensor.tick()
    assert len(first.asset_events) == 2 * len(evaluations(first))
    now[0] += 3000
    found["host"] = [result(False, "host", "disk", "warning", "16.1 GiB are free")]
    assert sensor.tick().asset_events == []
    now[0] += 601
    again = sensor.tick()
    assert set(evaluations(again)) == set(evaluations(first))
    (numbers,) = {
        (event.metadata["healthy/findings"].value, event.metadata["healthy/seconds"].value, event.metadata["files"].value)
        for event in again.asset_events
        if isinstance(event, dg.AssetMaterialization) and event.asset_key == HOST
    }
    assert numbers == (1, 0.25, 7), "Dagster plots what materializations carry"
    found["forge-python"] = [result(False, finding="a.py was edited")]
    assert list(evaluations(sensor.tick())) == [RUNTIME]
    found["forge-python"] = [result(False, finding="b.py was edited")]
    assert "b.py" in (evaluations(sensor.tick())[RUNTIME].description or ""), "what is wrong is not what was wrong"
    assert sensor.tick().asset_events == []


def test_a_warning_is_no_error_and_nothing_checked_is_not_healthy(
    deployment: Deployment, instance: dg.DagsterInstance, found: dict[str, list[CheckResult]]
) -> None:
    found["host"] = [
        CheckResult(name="space", target="host", passed=False, severity="warning", finding="Little.", remedy="forge gc")
    ]
    found["forge-python"] = []
    seen = evaluations(Sensor(definitions(deployment), instance).tick())
    assert seen[HOST].severity is dg.AssetCheckSeverity.WARN
    assert seen[HOST].description == "space: Little. Remedy: forge gc"
    assert not seen[RUNTIME].passed


def test_what_takes_longer_than_a_tick_is_told_by_a_later_one(
    deployment: Deployment, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, looks = threading.Event(), []

    def inspect(engine: Engine, target: str, *, full: bool) -> Inspection:
        looks.append(target)
        if target == "storage":
            done.wait(30)
        return Inspection(target=target, results=[result(True, target)], findings=0, took_s=0.25)

    monkeypatch.setattr(lookout, "inspect", inspect)
    monkeypatch.setattr(health_sensor, "_LOOK_S", 0.5)
    sensor = Sensor(definitions(deployment), instance)
    for _ in range(2):
        late = sensor.tick()
        assert STORAGE not in evaluations(late)
        assert isinstance(late.skip_reason, dg.SkipReason) and "Not done yet: storage" in (late.skip_reason.skip_message or "")
    assert looks.count("storage") == 1, "it is looked at once at a time"
    assert looks.count("host") == 2, "the others go on"
    done.set()
    wait_until("the result", lambda: STORAGE in evaluations(sensor.tick()))


@pytest.mark.parametrize("cursor", ["{", '{"host": {"version": "1", "state": "x", "at": 5.0}}', '{"seen": 5}'])
def test_a_cursor_of_another_forge_is_no_hindrance(
    deployment: Deployment, instance: dg.DagsterInstance, found: dict[str, list[CheckResult]], cursor: str
) -> None:
    sensor = Sensor(definitions(deployment), instance)
    sensor.cursor = cursor
    assert {HOST, RUNTIME} <= set(evaluations(sensor.tick()))


def test_the_check_can_be_executed_as_a_run_for_one_target(deployment: Deployment, found: dict[str, list[CheckResult]]) -> None:
    selection = dg.AssetSelection.checks(dg.AssetCheckKey(RUNTIME, QUICK))
    defs = dg.Definitions.merge(definitions(deployment), dg.Definitions(jobs=[dg.define_asset_job("one", selection=selection)]))
    done = defs.resolve_job_def("one").execute_in_process()
    assert [found.asset_key for found in done.get_asset_check_evaluations()] == [RUNTIME]


class TestNotification:
    def test_each_change_is_logged_and_posted_once(
        self, deployment: Deployment, instance: dg.DagsterInstance, found: dict[str, list[CheckResult]], server: WebhookServer,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        configure(deployment, f'[health]\nwebhook_url = "{server.url}/s3cret"\n')
        sensor = Sensor(definitions(deployment), instance)
        found["forge-ml"] = [result(False, "forge-ml", severity="warning", finding="not built")]
        sensor.tick()
        assert server.bodies == [], "what was not built at the first look has not become worse"
        found["forge-python"] = [result(False, finding="lib/a.py was edited")]
        for _ in range(3):
            sensor.tick()
        del found["forge-python"]
        for _ in range(3):
            sensor.tick()
        assert [(body["target"], body["check"], body["change"]) for body in server.bodies] == [
            ("forge-python", "seal", "worse"), ("forge-python", "seal", "better"),
        ]  # fmt: skip
        worse, better = server.bodies
        assert (worse["host"], worse["finding"], worse["remedy"]) == (socket.gethostname(), "lib/a.py was edited", "do it")
        assert worse["since"] == better["since"]
        said = capsys.readouterr().err
        assert said.count("forge-python is worse: seal: lib/a.py was edited. Remedy: do it") == 1
        assert said.count("forge-python is better: seal passes again") == 1
        assert "s3cret" not in said

    def test_a_webhook_that_is_down_is_logged_once_and_told_later(
        self, deployment: Deployment, instance: dg.DagsterInstance, found: dict[str, list[CheckResult]], server: WebhookServer,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        configure(deployment, f'[health]\nwebhook_url = "{server.url}/s3cret"\n')
        sensor = Sensor(definitions(deployment), instance)
        sensor.tick()
        server.statuses = [500, 500, 500]
        found["forge-python"] = [result(False)]
        found["host"] = [result(False, "host", "disk")]
        for _ in range(3):
            assert isinstance(sensor.tick().skip_reason, dg.SkipReason)
        assert len(server.bodies) == 3, "one try a tick, however many changes wait"
        for _ in range(3):
            sensor.tick()
        assert [body["target"] for body in server.bodies[3:]] == ["host", "forge-python"], "each once, in their order"
        said = capsys.readouterr().err
        assert said.count("The webhook was not told: it answers with status 500") == 1
        assert said.count("The webhook works again") == 1
        assert "s3cret" not in said


class TestFullVerification:
    def test_of_a_real_runtime_store_and_database(self, deployment: Deployment, instance: dg.DagsterInstance) -> None:
        deployment.build_runtime()
        database = deployment.home / "lab.db"
        with closing(sqlite3.connect(database)) as made:
            made.execute("CREATE TABLE t (x)")
            made.executemany("INSERT INTO t VALUES (?)", [("x" * 100,)] * 1000)
            made.commit()
        text = f"[protected_databases]\n\"lab's\" = 'sqlite:///{database}'\n"
        configure(deployment, text)
        defs = definitions(deployment)
        done = execute(defs, full_verification.JOB, instance)
        assert done.success
        seen = {one.asset_key: one for one in done.get_asset_check_evaluations()}
        assert set(seen) == {RUNTIME, STORAGE, LAB}, "those that are not built are left out"
        assert all(one.passed and one.check_name == FULL for one in seen.values()), seen
        assert "self-test are as they were built" in str(seen[RUNTIME].metadata["checks"].value)
        assert seen[RUNTIME].metadata["files"].value > 10 and seen[RUNTIME].metadata["seconds"].value > 0

        edit(deployment)
        with database.open("r+b") as file:
            file.seek(2 * 4096)  # a page of the table
            file.write(b"\xff" * 4096)
        done = execute(defs, full_verification.JOB, instance, asset_selection=None)
        assert done.success, "what is found is a result, not a failure of the run"
        seen = {one.asset_key: one for one in done.get_asset_check_evaluations()}
        assert "pyvenv.cfg was edited" in (seen[RUNTIME].description or "")
        assert "lab.db is corrupt" in (seen[LAB].description or "")
        assert seen[STORAGE].passed

    def test_what_it_finds_in_a_database_is_told_by_the_sensor(
        self, deployment: Deployment, instance: dg.DagsterInstance, found: dict[str, list[CheckResult]], server: WebhookServer
    ) -> None:
        text = "[protected_databases]\n\"lab's\" = 'sqlite:////nowhere'\n"
        configure(deployment, f'{text}[health]\nwebhook_url = "{server.url}"\n')
        defs = definitions(deployment)
        sensor = Sensor(defs, instance)
        sensor.tick()
        found["lab's"] = [result(False, "lab's", "integrity", finding="page 7 is corrupt")]
        assert execute(defs, full_verification.JOB, instance).success
        found["lab's"] = [result(True, "lab's", "integrity")]
        for _ in range(3):
            sensor.tick()
        assert [(body["target"], body["check"], body["finding"]) for body in server.bodies] == [
            ("lab's", "integrity_in_full", "page 7 is corrupt")
        ]
        assert execute(defs, full_verification.JOB, instance).success
        sensor.tick()
        assert [body["change"] for body in server.bodies] == ["worse", "better"]


class TestRepair:
    def test_the_job_builds_anew_and_reports_the_check(self, deployment: Deployment, instance: dg.DagsterInstance) -> None:
        deployment.build_runtime()
        defs = definitions(deployment)
        sensor = Sensor(defs, instance)
        sensor.tick()
        edited = edit(deployment)
        inode = edited.stat().st_ino
        sensor.tick()
        done = execute(defs, "repair_runtime", instance, {"ops": {"_rebuild": {"config": {"runtime": "forge-python"}}}})
        assert done.success
        assert b"include-system-site-packages = true" not in edited.read_bytes() and edited.stat().st_ino != inode
        (reported,) = done.get_asset_check_evaluations()
        assert (reported.asset_key, reported.check_name, reported.passed) == (RUNTIME, QUICK, True)
        latest = instance.get_latest_materialization_event(RUNTIME)
        assert latest is not None and latest.run_id == done.run_id

    def test_a_runtime_that_is_not_there_cannot_be_asked_for(self, deployment: Deployment) -> None:
        with pytest.raises(dg.DagsterInvalidConfigError, match="nothing"):
            definitions(deployment).resolve_job_def("repair_runtime").execute_in_process(
                run_config={"ops": {"_rebuild": {"config": {"runtime": "nothing"}}}}
            )

    def test_a_build_that_fails_is_a_failure_with_the_sentence(self, deployment: Deployment, tmp_path: Path) -> None:
        definition = tmp_path / "wrong"
        definition.mkdir()
        (definition / "runtime.toml").write_text('kind = "venv"\nlock = "lock.txt"\npython = "<3"\n')
        (definition / "lock.txt").touch()
        configure(deployment, f'runtime_folders = ["{tmp_path}"]\n')
        config = tmp_path / "wrong.yaml"
        config.write_text("ops: {_rebuild: {config: {runtime: wrong}}}")
        done = deployment.job_execute("repair_runtime", config)
        assert done.returncode == 1
        assert "holds for Python <3" in done.stderr and "STEP_UP_FOR_RETRY" not in done.stderr

    @pytest.mark.parametrize("repair", ["auto", "manual"])
    def test_it_is_asked_for_once_each_time_a_runtime_turns_unhealthy(
        self, deployment: Deployment, instance: dg.DagsterInstance, repair: str
    ) -> None:
        deployment.build_runtime()
        configure(deployment, f'[health]\nrepair = "{repair}"\n')
        sensor = Sensor(definitions(deployment), instance)
        keys = []
        for seen_healthy in (True, False, True)[: 3 if repair == "auto" else 1]:  # or broken again before anybody looked
            if seen_healthy:
                assert sensor.tick().run_requests == []
            edit(deployment)
            asked = [request for _ in range(3) for request in sensor.tick().run_requests or ()]
            assert len(asked) == (1 if repair == "auto" else 0)
            for request in asked:
                assert request.job_name == "repair_runtime"
                assert request.run_config == {"ops": {"_rebuild": {"config": {"runtime": "forge-python"}}}}
                keys.append(request.run_key)
            deployment.forge("runtimes", "repair", "forge-python")
        assert len(set(keys)) == len(keys)

    def test_a_build_that_cannot_be_read_is_repaired_too(self, deployment: Deployment, instance: dg.DagsterInstance) -> None:
        deployment.build_runtime()
        configure(deployment, '[health]\nrepair = "auto"\n')
        sensor = Sensor(definitions(deployment), instance)
        next(deployment.home.glob("runtimes/forge-python/*/runtime.json")).write_text("{")
        assert [len(sensor.tick().run_requests or ()) for _ in range(2)] == [1, 0]

    def test_not_for_one_that_is_quarantined_until_it_is_released(
        self, deployment: Deployment, instance: dg.DagsterInstance
    ) -> None:
        deployment.build_runtime()
        configure(deployment, '[health]\nrepair = "auto"\n')
        sensor = Sensor(definitions(deployment), instance)
        deployment.forge("runtimes", "quarantine", "forge-python", "--reason", "it is looked at")
        edit(deployment)
        quarantined = sensor.tick()
        assert quarantined.run_requests == []
        assert "it is looked at" in (evaluations(quarantined)[RUNTIME].description or "")
        deployment.forge("runtimes", "quarantine", "--release", "forge-python")
        assert [request.job_name for request in sensor.tick().run_requests or ()] == ["repair_runtime"]

    def test_a_repaired_runtime_that_was_wrong_in_full_is_verified_again(
        self, deployment: Deployment, instance: dg.DagsterInstance
    ) -> None:
        deployment.build_runtime()
        defs = definitions(deployment)
        sensor = Sensor(defs, instance)
        sensor.tick()
        edit(deployment)
        assert execute(defs, full_verification.JOB, instance).success
        assert sensor.tick().run_requests == []
        deployment.forge("runtimes", "repair", "forge-python")
        (request,) = sensor.tick().run_requests or ()
        assert (request.job_name, request.asset_check_keys) == (full_verification.JOB, [dg.AssetCheckKey(RUNTIME, FULL)])
        assert request.run_key
        assert sensor.tick().run_requests == []


def test_what_it_reports_is_json_that_dagster_keeps(deployment: Deployment, instance: dg.DagsterInstance) -> None:
    sensor = Sensor(definitions(deployment), instance)
    sensor.tick()
    assert json.loads(sensor.cursor or "")["seen"]["host"]["version"]
