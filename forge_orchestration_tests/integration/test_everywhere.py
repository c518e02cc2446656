"""The same asset on this host, in a container and on a cluster, by op config alone: the same bytes, the same record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from forge_orchestration_tests.conftest import PATIENCE, Forge
from forge_orchestration_tests.container_engine import running_engine
from forge_orchestration_tests.integration.dagster_support import Deployment
from forge_orchestration_tests.slurm_cluster import running_cluster

pytestmark = [pytest.mark.together, pytest.mark.timeout(1800 * PATIENCE)]
EXECUTORS = ("local", "docker", "slurm")
# what an execution is called, when and where it was, who it was there, and what it needed; all else is the same
ITS_OWN = {
    "execution_id", "executor", "host", "native_id", "dagster_run_id", "chosen_by", "queued_at", "started_at", "ended_at", "folder", "logs", "usage",
    "isolation", "enforced", "cleanup", "cache", "message", "violations",
}  # fmt: skip


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, have_runtime: Callable[[Forge, str], None]) -> Iterator[Deployment]:
    with running_engine() as engine, running_cluster():
        made = Deployment(
            tmp_path_factory.mktemp("everywhere"),
            f"docker_host = {json.dumps(engine.url)}\n[slurm]\npoll_s = 0.5\ncommands_per_minute = 600\n",
        )
        for name in ("forge-genomics", "forge-singlecell"):
            have_runtime(Forge(made.home), name)
        yield made


@pytest.mark.parametrize("analysis", ["islands_and_exons", pytest.param("pbmc_clusters", marks=pytest.mark.slow)])
def test_it_is_the_same_everywhere(deployment: Deployment, tmp_path: Path, analysis: str) -> None:
    records: dict[str, dict[str, Any]] = {}
    for executor in EXECUTORS:
        config = tmp_path / f"{executor}.yaml"
        config.write_text(yaml.safe_dump({"ops": {f"run_{analysis}": {"config": {"executor": executor}}}}))
        done = deployment.job_execute(analysis, config)
        assert done.returncode == 0, done.stderr[-3000:]
        records[executor] = deployment.records()[-1]
    assert [records[one]["executor"] for one in EXECUTORS] == list(EXECUTORS)
    assert [records[one]["chosen_by"]["executor"] for one in EXECUTORS] == ["default", "op config", "op config"]
    outputs = {one: {item["path"]: item["sha256"] for item in records[one]["outputs"]} for one in EXECUTORS}
    assert outputs["local"] == outputs["docker"] == outputs["slurm"]
    assert any(path.endswith(".csv") for path in outputs["local"])
    for record in records.values():
        del record["runtime"]["verified_at"]
    same = {one: {key: value for key, value in records[one].items() if key not in ITS_OWN} for one in EXECUTORS}
    for key, value in same["local"].items():
        assert same["docker"].get(key) == same["slurm"].get(key) == value, key
    for one in EXECUTORS:  # of what may differ, as far as it is promised
        assert records[one]["isolation"]["protections"].keys() >= {"filesystem", "network", "memory_limit", "scratch_limit"}
        assert records[one]["enforced"]["memory_bytes"]["value"] == records[one]["limits"]["memory_bytes"]
