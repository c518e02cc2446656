"""Dagster's storage in PostgreSQL, as `docs/dagster.md` says to set it up: nothing of ours needs the files of SQLite."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import dagster as dg
import pytest

from forge_orchestration.operations.workers import WorkerFolder
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import leftovers, wait_until
from forge_orchestration_tests.integration.dagster_support import LOOKED_AT_OFTEN, Deployment, Webserver, in_postgres, wait_for
from forge_orchestration_tests.integration.postgres_server import Server, running_server

pytestmark = pytest.mark.together

AWAY_S = 15


@pytest.fixture(scope="module")
def database() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, database: Server) -> Iterator[Deployment]:
    made = Deployment(
        tmp_path_factory.mktemp("deployment"),
        changed=LOOKED_AT_OFTEN | in_postgres(database.url),
    )
    made.build_runtime()
    made.add_analysis("first", "print('done')\n")
    made.add_analysis("long", "import time\nprint('begun', flush=True)\ntime.sleep(4)\nprint('done')\n")
    yield made
    wait_until("nothing left", lambda: leftovers(made.home) == [])


@pytest.fixture
def server(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Webserver]:
    monkeypatch.setenv("FORGE_HOME", str(deployment.home))
    with deployment.daemon(), deployment.webserver() as made:
        yield made


def start_long(deployment: Deployment, server: Webserver) -> str:
    """A run of both, once the long one is at work in it."""
    run_id = server.start_assets("first", "long")
    wait_for("the long one", lambda: any(
        one["dagster_run_id"] == run_id and one["analysis"] == "long" and one["started_at"] for one in deployment.records()
    ))  # fmt: skip
    return run_id


def answers(server: Webserver) -> bool:
    """Whether a page can be seen."""
    with suppress(AssertionError):
        return bool(server.run_ids())
    return False


def started(server: Webserver) -> str | None:
    """A run, if the web server's connections let it be launched: that they are dead it finds only by use, of each."""
    with suppress(AssertionError):
        return server.start("first")
    return None


def told(deployment: Deployment, run_id: str) -> str:
    """The events of a run."""
    with dg.DagsterInstance.from_config(str(deployment.launch_folder())) as instance:
        return "\n".join(f"{event.timestamp:.2f} {event.message[:300]}" for event in instance.all_logs(run_id))


def completed(deployment: Deployment, run_id: str) -> list[str]:
    """The analyses that a run completed, each as often as it did; of all that it began the end is known."""
    own = [one for one in deployment.records() if one["dagster_run_id"] == run_id]
    assert all(one["end_reason"] for one in own), own
    return sorted(one["analysis"] for one in own if one["end_reason"] == "completed")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_is_seen_and_goes_on_after_its_worker_was_killed(deployment: Deployment, database: Server, server: Webserver) -> None:
    run_id = start_long(deployment, server)
    worker = WorkerFolder(load_settings(deployment.home).workers_dir, run_id).worker()
    assert worker is not None
    os.kill(worker.process.pid, signal.SIGKILL)
    assert server.wait(run_id) == "SUCCESS", told(deployment, run_id)
    assert completed(deployment, run_id) == ["first", "long"]
    assert server.latest_materialization("long")["metadata"]["end_reason"] == "completed"
    assert int(database.ask(f"SELECT count(*) FROM event_logs WHERE run_id = '{run_id}'")) > 10
    assert not list(deployment.home.glob("dagster/history/**/*.db"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_that_goes_away_and_comes_back_leaves_nothing_half_done(
    deployment: Deployment, database: Server, server: Webserver
) -> None:
    run_id = start_long(deployment, server)
    database.stop()
    time.sleep(AWAY_S)
    database.start()
    wait_for("an answer", lambda: answers(server))
    assert server.wait(run_id) == "SUCCESS", told(deployment, run_id)
    assert completed(deployment, run_id) == ["first", "long"]
    assert server.wait(wait_for("a launch", lambda: started(server))) == "SUCCESS"
