"""With `dagster dev` running: a runtime in use is edited, its check turns red, launches are refused, a repair turns it green.

Everything is asked for and seen through the GraphQL API, as the UI does it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from forge_orchestration_tests.conftest import PATIENCE
from forge_orchestration_tests.integration.dagster_support import Deployment, Webserver, processes_with, wait_for
from forge_orchestration_tests.webhook_server import WebhookServer

pytestmark = pytest.mark.together

INTERVAL_S = 5
DAGSTERS_OWN_S = 5.0  # Dagster looks so often which sensors are due
TICK_S = 10.0 * PATIENCE  # two cores, and whatever else they do
RUNTIME = ("runtime", "forge-python")
EDITED = "pyvenv.cfg"
MARK = "dagster-dev-test-patient"


@contextmanager
def running(folder: Path, settings: str) -> Iterator[tuple[Deployment, Webserver]]:
    deployment = Deployment(folder, f"[health]\nquick_every_s = {INTERVAL_S}\n{settings}")
    deployment.build_runtime()
    deployment.add_analysis("brief", "print('done')\n")
    deployment.add_analysis("patient", "import time\ntime.sleep(600)\n", command=f"[python, run.py, {MARK}]")
    with deployment.dagster_dev() as server:
        wait_for("the first look", lambda: [one for one in quick(server) if one["success"]])
        yield deployment, server


def quick(server: Webserver) -> list[dict[str, Any]]:
    return server.check_history(*RUNTIME, check="healthy")


def edit(deployment: Deployment) -> None:
    path = next(deployment.home.glob(f"runtimes/forge-python/*/prefix/{EDITED}"))
    path.write_bytes(path.read_bytes() + b"include-system-site-packages = true\n")


def wait_for_red(server: Webserver) -> dict[str, Any]:
    return wait_for("the red check", lambda: None if (latest := quick(server)[0])["success"] else latest)


def is_green(server: Webserver) -> bool:
    return bool(quick(server)[0]["success"])


@pytest.mark.timeout(600)
def test_an_edited_runtime_is_red_refused_and_repaired(tmp_path: Path) -> None:
    with WebhookServer() as hook, running(tmp_path, f'webhook_url = "{hook.url}"\n') as (deployment, server):
        states = server.instigators()
        assert {states[name] for name in ("forge_health", "forge_verify_in_full")} == {"RUNNING"}
        patient = server.start("patient")
        wait_for("the sandbox", lambda: processes_with(MARK))
        assert server.wait(server.start("brief")) == "SUCCESS"

        edit(deployment)
        edited_at = time.monotonic()
        red = wait_for_red(server)
        assert time.monotonic() - edited_at < INTERVAL_S + DAGSTERS_OWN_S + TICK_S
        assert red["severity"] == "ERROR"
        assert f"{EDITED} was edited" in red["description"] and "forge runtimes repair forge-python" in red["description"]
        assert red["metadata"]["findings"] == 1 and red["metadata"]["files"] > 10 and red["metadata"]["seconds"] > 0
        (row,) = red["metadata"]["checks"]
        assert (row["check"], row["passed"], row["remedy"]) == ("seal", False, "forge runtimes repair forge-python")

        refused = server.start("brief")
        assert server.wait(refused) == "FAILURE"
        _is_refused_in_its_step(server, refused)
        assert not [record for record in deployment.records() if record["dagster_run_id"] == refused], "nothing was begun"
        assert server.status(patient) == "STARTED", "what runs goes on"

        assert "forge-python: ready" in deployment.forge("runtimes", "repair", "forge-python")
        wait_for("the green check", lambda: is_green(server))
        assert server.wait(server.start("brief")) == "SUCCESS"
        assert server.status(patient) == "STARTED", "what runs has the build that it began with"
        server.terminate(patient)
        assert server.wait(patient) == "CANCELED"

        assert [one["success"] for one in quick(server)] == [True, False, True], (
            "each change once, though it was looked at each time"
        )
        wait_for("the webhook's second post", lambda: len(hook.bodies) > 1)
        told = [body for body in hook.bodies if body["target"] == "forge-python"]
        assert [body["change"] for body in told] == ["worse", "better"]
        assert told[0]["host"] == socket.gethostname() and EDITED in told[0]["finding"] and told[0]["remedy"]
        assert server.runs_of("repair_runtime") == [], "nobody has asked for it"


def _is_refused_in_its_step(server: Webserver, run_id: str) -> None:
    events = server.events(run_id)
    kinds = [event["__typename"] for event in events]
    assert kinds.count("ExecutionStepStartEvent") == 1 and "ExecutionStepUpForRetryEvent" not in kinds
    (failure,) = (event for event in events if event["__typename"] == "ExecutionStepFailureEvent")
    said = failure["failureMetadata"]["description"]
    assert EDITED in said and "forge runtimes repair forge-python" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_repairs_by_itself_and_reads_everything_when_it_is_time(tmp_path: Path) -> None:
    with running(tmp_path, 'repair = "auto"\nfull_at = "* * * * *"\n') as (deployment, server):
        edit(deployment)
        wait_for_red(server)
        wait_for("the green check", lambda: is_green(server))
        (repair,) = server.runs_of("repair_runtime")
        assert server.wait(repair["runId"]) == "SUCCESS"
        assert quick(server)[0]["runId"] == repair["runId"], "the job itself reports that all is well"
        assert server.wait(server.start("brief")) == "SUCCESS"

        verified = wait_for("the schedule's run", lambda: server.check_history(*RUNTIME, check="verified"), 120 * PATIENCE)[-1]
        assert verified["runId"] in {run["runId"] for run in server.runs_of("verify_in_full")}
        assert verified["metadata"]["files"] > 10 and verified["metadata"]["seconds"] > 0
        assert wait_for("the store", lambda: server.check_history("storage", socket.gethostname(), check="verified"))
