"""What the health sensor finds is what the metrics say of health."""

from __future__ import annotations

import dagster as dg
import pytest

from forge_orchestration.health import last
from forge_orchestration.orchestration import health
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.integration.dagster_support import Deployment


def test_a_tick_is_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    deployment = Deployment(tmp_path_factory.mktemp("kept"))
    deployment.build_runtime()
    settings = load_settings(deployment.home)
    (deployment.home / "health.json").unlink()
    sensor = health.health_definitions(settings).resolve_sensor_def("forge_health")
    with dg.DagsterInstance.ephemeral() as instance:
        sensor(dg.build_sensor_context(instance=instance))
    kept = {one.key: one.result.passed for one in last.read(settings)}
    assert kept["forge-python", "seal"] and kept["host", "bubblewrap"]
