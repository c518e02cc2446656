"""What goes wrong around a run, not in it: each is told in the run or at its launch, and nothing is left half done."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forge_orchestration
from forge_orchestration_tests.conftest import leftovers, wait_until
from forge_orchestration_tests.integration.dagster_support import LOCATION, LOOKED_AT_OFTEN, Deployment, Webserver

pytestmark = pytest.mark.together
SHIPPED = Path(forge_orchestration.__file__).parent / "runtimes" / "definitions" / "forge-python"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("troubles")
    (folder / "runtimes").mkdir()
    made = Deployment(folder, f'runtime_folders = ["{folder}/runtimes"]\n', changed=LOOKED_AT_OFTEN)
    made.build_runtime()
    made.add_analysis("quick", "print('done')\n")
    yield made
    wait_until("nothing left", lambda: leftovers(made.home) == [])


@pytest.fixture(scope="module")
def server(deployment: Deployment) -> Iterator[Webserver]:
    with deployment.webserver() as made:
        yield made


@pytest.fixture
def other_runtime(deployment: Deployment) -> Iterator[Path]:
    """A runtime of the lab's own, which is there until it is removed."""
    folder = deployment.home.parent / "runtimes" / "other"
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("__pycache__"))
    deployment.forge("runtimes", "build", "other")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def reload(server: Webserver) -> dict[str, Any]:
    """Press Reload."""
    entry: dict[str, Any] = server.query(
        """mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename
             ... on WorkspaceLocationEntry { locationOrLoadError { __typename ... on PythonError { message causes { message } } } } } }""",
        name=LOCATION,
    )["reloadRepositoryLocation"]
    return entry["locationOrLoadError"]  # type: ignore[no-any-return]


def why(server: Webserver, run_id: str) -> str:
    """What the event says with which a run failed."""
    (event,) = [event for event in server.events(run_id) if event["__typename"] == "RunFailureEvent"]
    return str(event["message"])


def executions(deployment: Deployment, *runs: str) -> Counter[tuple[str, str]]:
    """By run, how its executions ended."""
    return Counter((one["dagster_run_id"], one["end_reason"]) for one in deployment.records() if one["dagster_run_id"] in runs)


def test_a_stored_config_whose_runtime_was_removed(deployment: Deployment, server: Webserver, other_runtime: Path) -> None:
    assert reload(server)["__typename"] == "RepositoryLocation"
    with deployment.daemon():
        first = server.start("quick", {"runtime": "other"})
        assert server.wait(first) == "SUCCESS", server.events(first)
    waiting = server.start("quick", {"runtime": "other"})
    shutil.rmtree(other_runtime)
    assert reload(server)["__typename"] == "RepositoryLocation"
    before = server.run_ids()
    again = server.execute_again(first)
    assert again["__typename"] != "LaunchRunSuccess" and "ForgeRuntime got other" in str(again), again
    assert server.run_ids() == before
    with deployment.daemon():
        assert server.wait(waiting) == "FAILURE"
    assert "ForgeRuntime got other. What it was launched with is not valid any more" in why(server, waiting)
    assert executions(deployment, first, waiting) == {(first, "completed"): 1}


def test_settings_that_cannot_be_read(deployment: Deployment, server: Webserver) -> None:
    settings = deployment.home / "settings.toml"
    text = settings.read_text()
    with deployment.daemon():
        assert server.wait(server.start("quick")) == "SUCCESS"  # it has begun, and so has the daemon
        settings.write_text(f"{text}memory = [\n")
        try:
            run_id = server.start("quick")
            assert server.wait(run_id) == "FAILURE"
            assert f"{settings} cannot be read" in why(server, run_id)
            broken = reload(server)
            assert broken["__typename"] == "PythonError" and f"{settings} cannot be read" in str(broken["causes"]), broken
            before = server.run_ids()
            refused = server.launch("quick")
            assert refused["__typename"] != "LaunchRunSuccess" and server.run_ids() == before
        finally:
            settings.write_text(text)
            assert reload(server)["__typename"] == "RepositoryLocation"
        assert server.wait(server.start("quick")) == "SUCCESS"
    assert executions(deployment, run_id) == {}


@pytest.mark.slow
def test_without_a_daemon_runs_wait_and_two_launch_none_twice(deployment: Deployment, server: Webserver) -> None:
    runs = [server.start("quick") for _ in range(6)]
    assert {server.status(run_id) for run_id in runs} == {"QUEUED"}
    with deployment.daemon(), deployment.daemon():
        assert [server.wait(run_id) for run_id in runs] == ["SUCCESS"] * len(runs)
    assert executions(deployment, *runs) == {(run_id, "completed"): 1 for run_id in runs}


HOSTILE_TAGS = [
    ("forge/execution_id", "20260101T000000000-00000000"), ("dagster/priority", "highest"),
    ("note", "line\n\x1b[2Jline\u202e"), ("note", "x" * 100_000), ("dagster/grpc_info", "{"), (".dagster/repository", "other@other"),
    ("dagster/max_retries", "-1"), ("forge/priority", "9999"), ("a b\nc", "'; DROP TABLE runs; --"),
]  # fmt: skip


@pytest.mark.slow
def test_hostile_tags_of_runs(deployment: Deployment, server: Webserver) -> None:
    runs = [server.start_tagged("quick", {name: value}) for name, value in HOSTILE_TAGS]
    with deployment.daemon():
        ends = {tag: server.wait(run_id) for tag, run_id in zip(HOSTILE_TAGS, runs, strict=True)}
    assert set(ends.values()) == {"SUCCESS"}, ends
    assert HOSTILE_TAGS[0][1] not in {one["execution_id"] for one in deployment.records()}
    assert executions(deployment, *runs) == {(run_id, "completed"): 1 for run_id in runs}
