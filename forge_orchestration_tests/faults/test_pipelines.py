"""The pipelines that ship, launched from the UI, and killed and gone on with there: what had finished is not done twice.

The worker of a run is killed, and Dagster's monitor has another go on with the run; or somebody terminates a run, and has it executed
again from its failure. Afterwards the outputs are those of one that nobody has stopped.
"""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from forge_orchestration.operations.workers import WorkerFolder
from forge_orchestration.settings import load_settings
from forge_orchestration_tests import conftest
from forge_orchestration_tests.conftest import PATIENCE, Forge
from forge_orchestration_tests.integration.dagster_support import LOOKED_AT_OFTEN, Deployment, Webserver, wait_for

LONG_S = 600.0 * PATIENCE
Record = dict[str, Any]


class Pipeline(NamedTuple):
    """What ships, and where it is hit.

    Attributes:
        target: The stage that runs when it is hit.
        runtime: Of all stages.
        params: Other ones than its own, by stage, so that an earlier run has made none of its results.
        partitions: The first and the last of a range, where it has them.
        seen: Lines like this one of the target's log are work that is not done twice; it is hit after the third.
    """

    target: str
    runtime: str
    params: dict[str, dict[str, Any]]
    partitions: tuple[str, str] | None = None
    seen: str = ""


PIPELINES = {
    "pbmc_from_counts": Pipeline("clusters", "forge-singlecell", {"qc": {"min_genes": 11}}),
    "yeast_expression": Pipeline("count", "forge-genomics", {"filter": {"max_differences": 3}}, partitions=("I", "XVI")),
    "tumour_search": Pipeline("search", "forge-ml", {"folds": {"folds": 4}, "search": {"trials": 12}}, seen=r"^(trial \d+) of"),
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800 * PATIENCE)]


@pytest.fixture
def deployment(tmp_path: Path, have_runtime: Callable[[Forge, str], None], name: str) -> Iterator[Deployment]:
    made = Deployment(tmp_path, changed=LOOKED_AT_OFTEN, reuse=True)
    conftest._homes.append(made.home)
    have_runtime(Forge(made.home), PIPELINES[name].runtime)
    yield made


def launch(server: Webserver, name: str) -> str:
    pipeline = PIPELINES[name]
    ops = {f"run_{name}__{stage}": {"config": {"params": params}} for stage, params in pipeline.params.items()}
    tags = dict(zip(("start", "end"), pipeline.partitions, strict=True)) if pipeline.partitions else {}
    return server.start_job(name, ops, {f"dagster/asset_partition_range_{end}": key for end, key in tags.items()})


def done(record: Record, seen: str) -> list[str]:
    """What an execution has said that it has done."""
    log = Path(record["folder"], "stdout.log")
    return re.findall(seen, log.read_text(), re.MULTILINE) if seen and log.exists() else []


def in_the_middle(deployment: Deployment, name: str) -> Record:
    """The record of the target, once it is at work."""
    pipeline = PIPELINES[name]

    def look() -> Record | None:
        for record in deployment.records():
            if record["analysis"] == f"{name}.{pipeline.target}" and record["status"] == "running":
                return record if not pipeline.seen or len(done(record, pipeline.seen)) >= 3 else None
        return None

    return wait_for("the middle of the work", look, LONG_S, every_s=0.01)


def finished(records: list[Record]) -> Counter[tuple[str, str | None]]:
    """How often each stage of each partition was run to its end."""
    return Counter(
        (one["analysis"], one["partition"]) for one in records if one["status"] == "succeeded" and not one["cache"]["hit"]
    )


def outputs(records: list[Record]) -> dict[tuple[str, str | None, str], str]:
    """The digest of each output."""
    return {
        (one["analysis"], one["partition"], output["name"]): output["sha256"]
        for one in records
        if one["status"] == "succeeded"
        for output in one["outputs"]
    }


def see_that_nothing_was_done_twice(
    deployment: Deployment, name: str, hit: Record, before: Counter[tuple[str, str | None]]
) -> None:
    records, pipeline = deployment.records(), PIPELINES[name]
    ran = finished(records)
    assert set(before) < set(ran) and set(ran.values()) == {1}, (before, ran)
    (stopped,) = (one for one in records if one["execution_id"] == hit["execution_id"])
    # of sixteen short ones the one that was seen at work may have just been ready
    assert stopped["status"] in ("canceled", "lost", *(["succeeded"] if pipeline.partitions else [])), stopped["message"]
    after = [one for one in records if one["analysis"] == hit["analysis"] and one["execution_id"] > hit["execution_id"]]
    did = [word for one in [stopped, *after] for word in done(one, pipeline.seen)]
    assert len(did) == len(set(did)), did
    if pipeline.seen:
        assert len(did) == pipeline.params[pipeline.target]["trials"], did
        assert after[-1]["checkpoint"]["resumed_from"] == hit["execution_id"], after[-1]["checkpoint"]


def see_the_same_bytes(deployment: Deployment, name: str) -> None:
    """As of one that nobody stops, run from the command line; of one partition only, where it has them."""
    pipeline, made = PIPELINES[name], outputs(deployment.records())
    words = [word for params in pipeline.params.values() for key, value in params.items() for word in ("--param", f"{key}={value}")]
    words += ["--partition", pipeline.partitions[1]] if pipeline.partitions else []
    again = outputs(json.loads(deployment.forge("run", name, "--json", "--cache", "off", *words, timeout_s=LONG_S)))
    assert again and again.items() <= made.items()


def kill_its_worker(deployment: Deployment, _server: Webserver, run_id: str) -> str:
    worker = WorkerFolder(load_settings(deployment.home).workers_dir, run_id).worker()
    assert worker is not None
    worker.process.send(signal.SIGKILL)
    return run_id  # Dagster's monitor has another worker go on with it


def terminate_and_execute_again(_deployment: Deployment, server: Webserver, run_id: str) -> str:
    assert server.terminate(run_id) == "TerminateRunSuccess"
    assert server.wait(run_id, LONG_S) == "CANCELED"
    again = server.execute_again(run_id, "FROM_FAILURE")
    assert again["__typename"] == "LaunchRunSuccess", again
    return str(again["run"]["runId"])


@pytest.mark.parametrize("stop", [kill_its_worker, terminate_and_execute_again])
@pytest.mark.parametrize("name", PIPELINES)
def test_what_had_finished_is_not_done_again(
    deployment: Deployment, name: str, stop: Callable[[Deployment, Webserver, str], str]
) -> None:
    with deployment.daemon(), deployment.webserver() as server:
        run_id = launch(server, name)
        hit = in_the_middle(deployment, name)
        before = finished(deployment.records())
        assert before
        run_id = stop(deployment, server, run_id)
        assert server.wait(run_id, LONG_S) == "SUCCESS", server.events(run_id)
    see_that_nothing_was_done_twice(deployment, name, hit, before)
    see_the_same_bytes(deployment, name)
