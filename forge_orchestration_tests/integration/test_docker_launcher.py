"""dagster-docker's own launcher: the run's worker in a container, and Forge's executions beside it on the host, in sandboxes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import docker
import pytest

from forge_orchestration.model.reasons import EndReason
from forge_orchestration_tests import conftest
from forge_orchestration_tests.conftest import PATIENCE
from forge_orchestration_tests.container_engine import Engine, import_busybox, running_engine
from forge_orchestration_tests.integration.dagster_support import REPOSITORY, Deployment, wait_for

pytestmark = [pytest.mark.together, pytest.mark.timeout(600 * PATIENCE)]
OURS = """\
  module: forge_orchestration.orchestration.run_launcher
  class: SandboxRunLauncher
  config:
    memory: 1GiB
    pids: 512
    grace: 30s
"""


def theirs(image: str, home: Path, tests: Path) -> str:
    """The launcher as docs/dagster.md has it; the image is empty, so system and Python are this host's."""
    python = Path(sys.executable)
    read_only = {"/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", str(REPOSITORY), str(python.parents[1]), sys.base_prefix}
    shared = ["/sys/fs/cgroup", "/dev", "/run", str(home), str(tests)]
    volumes = [f"{path}:{path}:ro" for path in sorted(read_only)] + [f"{path}:{path}" for path in shared]
    variables = [
        f"FORGE_HOME={home}", f"PATH={python.parent}:/usr/sbin:/usr/bin:/sbin:/bin", f"PYTHONPATH={REPOSITORY}", "HOME=/root", f"TMPDIR={tests}",
    ]  # fmt: skip
    config = {
        "image": image, "env_vars": variables,
        "container_kwargs": {
            "cap_add": ["SYS_ADMIN", "SYS_PTRACE", "SYS_NICE", "NET_ADMIN", "DAC_READ_SEARCH", "KILL"],
            "security_opt": ["seccomp=unconfined", "apparmor=unconfined"], "device_cgroup_rules": ["b 7:* rmw", "c 10:237 rmw"], "pid_mode": "host", "cgroupns": "host", "network_mode": "host", "ipc_mode": "host", "working_dir": str(REPOSITORY),
            "volumes": volumes, "stop_timeout": 30,
        },
    }  # fmt: skip
    return f"  module: dagster_docker\n  class: DockerRunLauncher\n  config: {json.dumps(config)}\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine() as started:
        yield started


@pytest.fixture
def deployment(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    image = import_busybox(engine.url)
    made = Deployment(tmp_path)
    conftest._homes.append(made.home)
    made = made.changed("launch", {OURS: theirs(image, made.home, tmp_path)})
    made.build_runtime()
    made.add_analysis(
        "sum", "print('counting', flush=True)\nopen('/forge/outputs/sum.txt', 'w').write('42')\n", "outputs: {sum: sum.txt}\n"
    )
    made.add_analysis("long", "import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    monkeypatch.setenv("FORGE_HOME", str(made.home))
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    return made


def worker_of(engine: Engine, run_id: str) -> str:
    with contextlib.closing(docker.DockerClient(base_url=engine.url)) as client:
        (container,) = client.containers.list(all=True, filters={"label": f"dagster/run_id={run_id}"})
        return str(container.status)


def test_a_run_and_one_that_is_terminated(deployment: Deployment, engine: Engine) -> None:
    with (
        dg.DagsterInstance.from_config(str(deployment.launch_folder())) as instance, deployment.daemon(), deployment.webserver() as server,
    ):  # fmt: skip
        run_id = server.start("sum")
        assert server.wait(run_id) == "SUCCESS", [event.message for event in instance.all_logs(run_id)]
        record = deployment.record_of_run(run_id)
        assert Path(record["folder"], "outputs/sum.txt").read_text() == "42"
        assert record["executor"] == "local" and record["enforced"]["memory_bytes"]["source"].startswith(
            "/sys/fs/cgroup/memory/forge/executions/"
        )
        wait_for("the worker's end", lambda: worker_of(engine, run_id) == "exited")
        run_id = server.start("long")
        wait_for(
            "a line of it", lambda: any(b"begun" in log.read_bytes() for log in deployment.home.glob("executions/*/stdout.log"))
        )
        assert worker_of(engine, run_id) == "running"
        server.terminate(run_id)
        assert server.wait(run_id) == "CANCELED"
        wait_for("the worker's end", lambda: worker_of(engine, run_id) == "exited")
        record = deployment.record_of_run(run_id)
        assert record["end_reason"] == EndReason.CANCELED
    assert not os.listdir(deployment.home / "scratch" / "workspace")
