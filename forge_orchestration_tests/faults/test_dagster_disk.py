"""The disk under Dagster's own data is full while analyses run: their run goes on once there is room, and nothing is half there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dagster as dg
import pytest

from forge_orchestration.operations.workers import WorkerFolder
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import leftovers, prerequisite, wait_until
from forge_orchestration_tests.integration.dagster_support import LOOKED_AT_OFTEN, Deployment, wait_for


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    prerequisite(os.geteuid() == 0, "only root can mount a file system that is soon full")
    made = Deployment(tmp_path, changed=LOOKED_AT_OFTEN)
    monkeypatch.setenv("FORGE_HOME", str(made.home))
    made.build_runtime()
    made.add_analysis("first", "print('done')\n")
    made.add_analysis("long", "import time\nprint('begun', flush=True)\ntime.sleep(4)\nprint('done')\n")
    folder = made.home / "dagster"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs", folder], check=True)
    yield made
    wait_for("the last worker's end", lambda: subprocess.run(["umount", folder], check=False).returncode == 0)
    wait_until("nothing left", lambda: leftovers(made.home) == [])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_goes_on_once_there_is_room(deployment: Deployment) -> None:
    fill = deployment.home / "dagster" / "fill"
    with deployment.daemon(), deployment.webserver() as server:
        run_id = server.start_assets("first", "long")
        wait_for("the long one", lambda: any("begun" in log.read_text() for log in deployment.home.glob("executions/*/stdout.log")))
        worker = WorkerFolder(load_settings(deployment.home).workers_dir, run_id).worker()
        assert worker is not None
        with suppress(OSError), fill.open("wb", 0) as file:
            while True:
                file.write(bytes(2**16))
        wait_for("the worker's end", lambda: not worker.process.is_alive or None)
        fill.unlink()
        status = server.wait(run_id)
    with dg.DagsterInstance.from_config(str(deployment.launch_folder())) as instance:
        told = "\n".join(f"{event.timestamp:.2f} {event.message[:300]}" for event in instance.all_logs(run_id))
    assert status == "SUCCESS", told
    ends = [(one["analysis"], one["end_reason"]) for one in deployment.records() if one["dagster_run_id"] == run_id]
    # what ran when the worker could not go on was ended by it, or had ended; what had completed was not run again
    assert sorted(end for end in ends if end[1] == "completed") == [("first", "completed"), ("long", "completed")], ends
    assert {end for end in ends if end[1] != "completed"} <= {("long", "canceled")}, ends
