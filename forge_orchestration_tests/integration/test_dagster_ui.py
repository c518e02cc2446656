"""Launched, watched and terminated as the UI does it: a real web server on loopback, spoken to in GraphQL."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from forge_orchestration_tests.integration.dagster_support import (
    NO_QUEUE,
    REPOSITORY,
    RUN_S,
    Deployment,
    Webserver,
    processes_in_cgroup,
    processes_with,
    wait_for,
)

PICTURE = """
    import json, os, struct, sys, zlib
    outputs = os.environ["FORGE_OUTPUTS"]

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    with open(f"{outputs}/plot.png", "wb") as file:
        file.write(b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)))
        file.write(chunk(b"IDAT", zlib.compress(b"\\0\\x80")) + chunk(b"IEND", b""))
    with open(f"{outputs}/clusters.csv", "w") as file:
        file.write("cluster,cells\\n0,<b>120</b>\\n1,80\\n")
    with open(os.environ["FORGE_MESSAGES"], "a") as messages:
        messages.write(json.dumps({"type": "metadata", "values": {"clusters": 2, "score": 0.5}}) + "\\n")
"""

# The word after the script is how the test finds its process from outside.
PATIENT = """
    import json, os, signal, sys, time
    if json.load(open(os.environ["FORGE_PARAMS"]))["deaf"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("standard output \\x1b[31mis live", flush=True)
    print("standard error is live", file=sys.stderr, flush=True)
    with open(os.environ["FORGE_MESSAGES"], "a") as messages:
        messages.write(json.dumps({"type": "log", "level": "warning", "message": "a message is live"}) + "\\n")
        messages.write(json.dumps({"type": "progress", "fraction": 0.25, "message": "waiting"}) + "\\n")
    time.sleep(600)
"""
MARK = "dagster-ui-test-patient"

FAILING = """
    import sys
    print("``` cannot find <gene> x", file=sys.stderr)
    sys.exit(3)
"""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    made = Deployment(tmp_path_factory.mktemp("ui"), changed=NO_QUEUE)
    made.build_runtime()
    made.add_analysis("plot", PICTURE, "outputs: {picture: plot.png, clusters: clusters.csv}\n")
    made.add_analysis("patient", PATIENT, "params: {deaf: {type: bool, default: false}}\n", command=f"[python, run.py, {MARK}]")
    made.add_analysis("failing", FAILING)
    made.add_analysis("broken", definition="command: [python\n", command="")
    return made


@pytest.fixture(scope="module")
def webserver(deployment: Deployment) -> Iterator[Webserver]:
    with deployment.webserver() as server:
        yield server


def test_launch_with_another_memory_limit_shows_what_was_enforced(deployment: Deployment, webserver: Webserver) -> None:
    run_id = webserver.start("plot", {"limits": {"memory": "300MiB"}, "runtime": "forge-python"})
    assert webserver.wait(run_id) == "SUCCESS", webserver.events(run_id)
    record = deployment.record_of_run(run_id)
    assert record["limits"]["memory_bytes"] == 300 * 2**20
    assert record["enforced"]["memory_bytes"]["value"] == 300 * 2**20
    assert set(record["isolation"]["protections"].values()) == {"on"}

    shown = webserver.latest_materialization("plot")
    assert shown["runId"] == run_id
    assert shown["tags"]["forge/execution_id"] == record["execution_id"]
    assert len(shown["tags"]["dagster/data_version"]) == 64
    metadata = shown["metadata"]
    assert metadata["end_reason"] == "completed"
    assert metadata["exit_code"] == 0
    assert metadata["runtime"] == "forge-python"
    assert metadata["runtime/content_digest"] == record["runtime"]["content_digest"]
    memory = next(row for row in metadata["limits"] if row["limit"] == "memory")
    assert memory["asked"] == "300MiB"
    assert memory["enforced"] == "300.0 MiB"
    assert memory["read from"]
    assert {row["state"] for row in metadata["isolation"]} == {"on"}
    assert metadata["usage/wall_s"] > 0
    assert metadata["usage/peak_memory_mib"] > 1
    assert {row["name"]: len(row["sha256"]) for row in metadata["outputs"]} == {"picture": 64, "clusters": 64}
    assert metadata["analysis/clusters"] == 2
    assert metadata["analysis/score"] == 0.5
    assert metadata["preview/picture"].startswith("![picture](data:image/png;base64,iVBOR")
    assert metadata["preview/clusters"][0] == {"cluster": "0", "cells": "<b>120</b>"}
    for label in ("record", "log/stdout", "log/stderr", "output_folder"):
        assert Path(metadata[label]).exists(), label


def test_two_launches_of_the_same_have_the_same_data_version(webserver: Webserver) -> None:
    versions = set()
    for _ in range(2):
        assert webserver.wait(webserver.start_assets("plot")) == "SUCCESS"
        versions.add(webserver.latest_materialization("plot")["tags"]["dagster/data_version"])
    assert len(versions) == 1


def test_the_launchpad_shows_the_whole_config(webserver: Webserver) -> None:
    text = webserver.default_config("plot")
    for line in ("run_plot:", "runtime: forge-python", "executor: local", "memory: 2GiB", "wall_time: 30min", "seed: 0"):
        assert line in text


def test_what_an_analysis_sees_is_its_own_and_its_cgroup_is_seen_from_outside(deployment: Deployment, webserver: Webserver) -> None:
    run_id = webserver.start("confinement", {"params": {"hold_s": 300}})

    def report() -> dict[str, Any] | None:
        with suppress(ValueError):
            seen: dict[str, Any] = json.loads(webserver.captured(run_id)["stdout"])
            return seen
        return None

    seen = wait_for("the report on standard output", report)
    record = deployment.record_of_run(run_id)
    assert record["status"] == "running"
    outside = processes_in_cgroup(record["execution_id"])
    assert outside, "no process is in a cgroup of the execution"
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in outside}
    assert "python" in names
    assert not any(record["execution_id"] in line for line in seen["cgroup"]), "its own cgroup is the root of what it sees"
    assert seen["network"]["interfaces"] == ["lo"]
    # bubblewrap's placeholder may begin after the analysis
    assert {process["name"] for process in seen["processes"]} - {"cat"} == {"bwrap", "python"}
    pipes = {"DAGSTER_PIPES_CONTEXT", "DAGSTER_PIPES_MESSAGES"}  # which Forge sets itself
    told = set(seen["environment"]) - pipes
    assert not any(name.startswith("DAGSTER") or name == "FORGE_HOME" for name in told)
    assert str(deployment.home) not in json.dumps(seen["environment"])
    assert {"/forge/analysis", "/forge/outputs", "/forge/runtime"} <= {mount["path"] for mount in seen["mounts"]}
    assert seen["identity"]["uid"][0] == record["isolation"]["uid"] or os.getuid() != 0

    webserver.terminate(run_id)
    assert webserver.wait(run_id) == "CANCELED"
    assert processes_in_cgroup(record["execution_id"]) == []


def test_a_wrong_runtime_is_refused_before_a_run_is_made(webserver: Webserver) -> None:
    before = webserver.run_ids()
    answer = webserver.launch("plot", {"runtime": "forge-nothing"})
    assert answer["__typename"] == "RunConfigValidationInvalid"
    assert "forge-nothing" in answer["errors"][0]["message"]
    assert webserver.run_ids() == before


def test_a_limit_above_the_deployments_too(webserver: Webserver) -> None:
    before = webserver.run_ids()
    answer = webserver.launch("plot", {"limits": {"memory": "9000TiB"}})
    assert answer["__typename"] == "PythonError"
    assert "more than the" in answer["message"] and "that this deployment allows" in answer["message"]
    assert webserver.run_ids() == before


def test_a_failed_analysis_is_a_failed_step_with_the_records_sentence(deployment: Deployment, webserver: Webserver) -> None:
    run_id = webserver.start("failing")
    assert webserver.wait(run_id) == "FAILURE"
    record = deployment.record_of_run(run_id)
    events = webserver.events(run_id)
    failures = [event for event in events if event["__typename"] == "ExecutionStepFailureEvent"]
    assert [failure["failureMetadata"]["description"] for failure in failures] == [record["message"]]
    told = {entry["label"]: entry for entry in failures[0]["failureMetadata"]["metadataEntries"]}
    assert told["end_reason"]["text"] == "nonzero_exit"
    assert told["stderr"]["mdStr"] == "    ``` cannot find <gene> x"
    assert "ExecutionStepUpForRetryEvent" not in {event["__typename"] for event in events}


def test_a_broken_analysis_says_so_when_it_is_launched(webserver: Webserver) -> None:
    run_id = webserver.start("broken")
    assert webserver.wait(run_id) == "FAILURE"
    failure = next(event for event in webserver.events(run_id) if event["__typename"] == "ExecutionStepFailureEvent")
    assert "analysis.yaml is wrong" in failure["failureMetadata"]["description"]


def test_a_runtime_that_is_not_built_fails_with_the_command_that_builds_it(deployment: Deployment, webserver: Webserver) -> None:
    before = len(deployment.records())
    run_id = webserver.start("plot", {"runtime": "forge-singlecell"})
    assert webserver.wait(run_id) == "FAILURE"
    failure = next(event for event in webserver.events(run_id) if event["__typename"] == "ExecutionStepFailureEvent")
    assert "forge runtimes build forge-singlecell" in failure["failureMetadata"]["description"]
    assert len(deployment.records()) == before


@pytest.mark.parametrize("deaf", [False, True], ids=["ends at SIGTERM", "ignores SIGTERM"])
def test_output_and_messages_are_live_and_terminate_ends_the_sandbox(
    deployment: Deployment, webserver: Webserver, deaf: bool
) -> None:
    run_id = webserver.start("patient", {"params": {"deaf": deaf}, "limits": {"grace": "1s"}})

    def live() -> bool:
        messages = [(event.get("level"), event.get("message")) for event in webserver.events(run_id)]
        shown = webserver.captured(run_id)
        return (
            ("WARNING", "a message is live") in messages
            and ("INFO", "Progress: 25% waiting") in messages
            and "standard output" in shown["stdout"]
            and "standard error is live" in shown["stderr"]
        )

    wait_for("live output and messages", live)
    assert webserver.status(run_id) == "STARTED"
    log = Path(deployment.record_of_run(run_id)["logs"]["stdout"]["path"])
    assert webserver.captured(run_id)["stdout"].encode() == log.read_bytes()
    assert os.stat(log).st_nlink == 2, "what Dagster shows is the execution's own log, not a copy of it"
    assert processes_with(MARK), "the sandboxed process is seen from outside while it runs"

    asked = time.monotonic()
    assert webserver.terminate(run_id) == "TerminateRunSuccess"
    assert webserver.wait(run_id) == "CANCELED"
    assert time.monotonic() - asked < 10, "1 s of grace, and what the machine needs"
    assert processes_with(MARK) == []
    record = deployment.record_of_run(run_id)
    assert record["status"] == "canceled"
    assert record["end_reason"] == "canceled"
    assert any(record["message"] in (event.get("message") or "") for event in webserver.events(run_id))


def test_a_run_of_the_command_line_is_terminated_from_the_ui(deployment: Deployment, webserver: Webserver) -> None:
    before = webserver.run_ids()
    command = subprocess.Popen(
        deployment.job_command("patient"), cwd=REPOSITORY, env=deployment.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for("the analysis", lambda: processes_with(MARK))
        (run_id,) = webserver.run_ids() - before
        assert webserver.terminate(run_id) == "TerminateRunSuccess"
        assert webserver.wait(run_id) == "CANCELED"
        assert command.wait(RUN_S) != 0
    finally:
        command.kill()
        command.wait()
    record = deployment.record_of_run(run_id)
    assert (record["status"], record["end_reason"]) == ("canceled", "canceled")
    assert processes_with(MARK) == []
