"""Analyses with partitions: an execution each, alone or all in one run, from the command line, the UI and a backfill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forge_orchestration_tests.integration.dagster_support import LOCATION, REPOSITORY, RUN_S, Deployment, Webserver, wait_for

pytestmark = pytest.mark.together

SCRIPT = """
    import json, os, sys, time
    from pathlib import Path
    text = Path(os.environ["FORGE_INPUTS"], "text").read_text()
    print("this is", os.environ["FORGE_PARTITION"])
    if text == "bad":
        sys.exit("bad text")
    Path(os.environ["FORGE_OUTPUTS"], "upper.txt").write_text(text.upper())
    check = {"type": "check", "name": "small", "passed": text != "text b", "message": text}
    open(os.environ["FORGE_MESSAGES"], "a").write(json.dumps(check) + "\\n")
    """
DEFINITION = """
    inputs: {text: {path: "texts/{partition}.txt"}}
    outputs: {upper: upper.txt}
    checks: {small: The text is a small one}
    partitions: {keys: [a, b, c, d, e]}
    """
AFTER = """
    import os
    from pathlib import Path
    Path(os.environ["FORGE_OUTPUTS"], "twice.txt").write_text(Path(os.environ["FORGE_INPUTS"], "upper").read_text() * 2)
    """
FUNCTIONS = """
    import dagster as dg
    from forge_orchestration import forge_asset
    from forge_orchestration.orchestration.sandboxed_executor import sandboxed_executor

    numbers_of = dg.StaticPartitionsDefinition(["1", "2", "3"])

    @forge_asset(partitions_def=numbers_of)
    def number(*, partition: str, plus: int = 0) -> int:
        return int(partition) + plus

    @forge_asset(partitions_def=numbers_of)
    def doubled(number: int) -> int:
        return 2 * number

    both_of = dg.MultiPartitionsDefinition({"one": numbers_of, "two": dg.StaticPartitionsDefinition(["a", "b"])})

    @forge_asset(partitions_def=both_of)
    def both(*, partition: str) -> str:
        return partition

    defs = dg.Definitions(
        assets=[number, doubled, both],
        jobs=[
            dg.define_asset_job("calculate", selection=["number", "doubled"]), dg.define_asset_job("both_job", selection=["both"]),
        ],
        executor=sandboxed_executor,
    )
    """


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("partitions"))
    made.build_runtime()
    made.add_analysis("letters", SCRIPT, DEFINITION)
    texts = made.analyses / "letters" / "texts"
    texts.mkdir()
    for key in "abcde":
        (texts / f"{key}.txt").write_text("bad" if key == "d" else f"text {key}")
    after = 'inputs: {upper: {path: "asset://letters/upper"}}\noutputs: {twice: twice.txt}\npartitions: {keys: [a, b, c, d, e]}\n'
    made.add_analysis("twice", AFTER, after)
    made.add_analysis(
        "samples", 'import os, time; time.sleep(0.1); print(os.environ["FORGE_PARTITION"])', "partitions: {dynamic: samples}\n"
    )
    made.add_analysis("daily", "print()", "partitions: {every: day, start: 2026-01-01, per_run: 2}\n")
    (made.home.parent / "functions.py").write_text(textwrap.dedent(FUNCTIONS))
    yield made


@pytest.fixture(scope="module")
def server(deployment: Deployment) -> Iterator[Webserver]:
    with deployment.dagster_dev() as server:
        yield server


def execute(deployment: Deployment, job: str, *of: str, **tags: str) -> tuple[int, str]:
    """Exit status and standard error of `dagster job execute` with tags."""
    command = deployment.job_command(job)
    if of:
        command[command.index("-m", 3) : command.index("-j")] = of
    tagged = {f"dagster/{name}": value for name, value in tags.items()}
    done = subprocess.run(
        [*command, "--tags", json.dumps(tagged)], cwd=REPOSITORY, env=deployment.environment, capture_output=True, text=True, timeout=RUN_S,
    )  # fmt: skip
    return done.returncode, done.stderr


def of_run(deployment: Deployment, run_id: str) -> list[dict[str, Any]]:
    return [record for record in deployment.records() if record["dagster_run_id"] == run_id]


def materializations(server: Webserver, asset: str) -> list[dict[str, Any]]:
    """The newest first."""
    found: list[dict[str, Any]] = server.query(
        """query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset { assetMaterializations(limit: 5000) {
             runId partition tags { key value } metadataEntries { label ... on TextMetadataEntry { text } } } } } }""",
        key={"path": [asset]},
    )["assetOrError"].get("assetMaterializations", [])
    return found


def add_keys(server: Webserver, name: str, keys: list[str]) -> None:
    """Keys of a dynamic set, as the UI adds them."""
    for key in keys:
        answer = server.query(
            """mutation($selector: RepositorySelector!, $name: String!, $key: String!) {
                 addDynamicPartition(repositorySelector: $selector, partitionsDefName: $name, partitionKey: $key) {
                   __typename ... on PythonError { message } } }""",
            selector={"repositoryLocationName": LOCATION, "repositoryName": "__repository__"}, name=name, key=key,
        )  # fmt: skip
        assert answer["addDynamicPartition"]["__typename"] == "AddDynamicPartitionSuccess", answer


class TestOne:
    def test_from_the_command_line_of_dagster(self, deployment: Deployment) -> None:
        status, said = execute(deployment, "letters", partition="a")
        assert status == 0, said
        record = [one for one in deployment.records() if one["analysis"] == "letters"][-1]
        assert record["partition"] == "a"
        assert [Path(one["source"]).name for one in record["inputs"]] == ["a.txt"]
        assert Path(record["folder"], "outputs", "upper.txt").read_text() == "TEXT A"
        assert Path(record["folder"], "stdout.log").read_text() == "this is a\n"

    def test_from_the_command_line_of_forge(self, deployment: Deployment) -> None:
        deployment.forge("run", "letters", "--partition", "b")
        deployment.forge("run", "letters", "--partition", "c")
        b, c = [one for one in deployment.records() if one["analysis"] == "letters"][-2:]
        said = deployment.forge("run", "twice", "--partition", "b")
        record = [one for one in deployment.records() if one["analysis"] == "twice"][-1]
        assert (b["partition"], c["partition"], record["partition"]) == ("b", "c", "b")
        assert record["inputs"][0]["source"] == f"execution://{b['execution_id']}/upper.txt", "the same partition, not the latest"
        assert "partition              b" in said
        (row,) = json.loads(deployment.forge("executions", "list", "--analysis", "twice", "--json"))
        assert row["partition"] == "b"

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["letters"], "Analysis 'letters' has partitions, and the request names none. Name one: a, b, c, d, e."),
            (["letters", "--partition", "z"], "Analysis 'letters' has no partition 'z'. Its partitions: a, b, c, d, e."),
            (["twice", "--partition", "e"], "no execution of 'letters' has succeeded for partition 'e'"),
            (
                ["daily", "--partition", "2025-12-31"],
                "Partition '2025-12-31' of analysis 'daily' is not the beginning of one of its",
            ),
            (["daily", "--partition", "today"], "The partition of 'daily' is 'today'. Write it as 2026-01-01."),
            (["confinement", "--partition", "a"], "Analysis 'confinement' has no partitions"),
        ],
    )
    def test_what_is_not_there_is_refused(self, deployment: Deployment, words: list[str], sentence: str) -> None:
        before = len(deployment.records())
        with pytest.raises(AssertionError) as told:
            deployment.forge("run", *words)
        assert sentence in str(told.value)
        assert len(deployment.records()) == before

    def test_a_run_without_one_says_how_to_name_it(self, deployment: Deployment) -> None:
        status, said = execute(deployment, "letters")
        assert status == 1
        assert "Asset 'letters' has partitions, and the run names none." in said


class TestSeveral:
    def test_each_is_told_and_those_that_fail_fail_the_run_in_the_end(self, deployment: Deployment, server: Webserver) -> None:
        run_id = server.start_range("letters", "a", "e")
        assert server.wait(run_id) == "FAILURE"
        records = {one["partition"]: one for one in of_run(deployment, run_id)}
        assert {key: one["status"] for key, one in records.items()} == dict.fromkeys("abce", "succeeded") | {"d": "failed"}
        told = {one["partition"]: one for one in materializations(server, "letters") if one["runId"] == run_id}
        assert sorted(told) == list("abce")
        versions = set()
        for key, one in told.items():
            tags = {tag["key"]: tag["value"] for tag in one["tags"]}
            versions.add(tags["dagster/data_version"])
            assert tags["forge/execution_id"] == records[key]["execution_id"]
            shown = {entry["label"]: entry.get("text") for entry in one["metadataEntries"]}
            assert shown["execution_id"] == records[key]["execution_id"]
        assert len(versions) == 4
        (failure,) = [event for event in server.events(run_id) if event["__typename"] == "ExecutionStepFailureEvent"]
        assert failure["failureMetadata"]["description"].startswith(
            "1 of 5 partitions failed: d. The first, d: The analysis exited with status 1"
        )
        printed = server.captured(run_id)["stdout"]
        for key in "abcde":
            assert f"=== {key}: {records[key]['execution_id']} ===\nthis is {key}\n" in printed
        assert "bad text" in server.captured(run_id)["stderr"]

    @pytest.mark.slow
    def test_a_backfill_is_one_run_or_as_many_as_the_analysis_says(self, deployment: Deployment, server: Webserver) -> None:
        for asset, keys, runs in (("letters", ["a", "b", "c"], 1), ("daily", ["2026-01-01", "2026-01-02", "2026-01-03"], 2)):
            answer = server.query(
                """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename
                     ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }""",
                params={"assetSelection": [{"path": [asset]}], "partitionNames": keys},
            )["launchPartitionBackfill"]
            assert answer["__typename"] == "LaunchBackfillSuccess", answer

            def status(backfill: str = answer["backfillId"]) -> str | None:
                found = server.query(
                    "query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }",
                    id=backfill,
                )["partitionBackfillOrError"]["status"]
                return found if found.startswith("COMPLETED") or found == "FAILED" else None

            assert wait_for("the backfill", status) == "COMPLETED_SUCCESS"
            told = materializations(server, asset)[:3]
            assert sorted(one["partition"] for one in told) == keys
            assert len({one["runId"] for one in told}) == runs
        check = server.check_history("letters", check="small")[0]
        assert not check["success"]
        assert check["description"] == "Failed in 1 of 3 partitions. The first, b: text b"

    @pytest.mark.slow
    def test_a_worker_that_is_killed_goes_on_with_the_rest(self, deployment: Deployment, server: Webserver) -> None:
        keys = [f"s{number:02}" for number in range(40)]
        add_keys(server, "samples", keys)
        run_id = server.start_range("samples", keys[0], keys[-1])
        wait_for("some of them", lambda: len(of_run(deployment, run_id)) >= 10)
        worker = json.loads((deployment.home / "dagster" / "workers" / run_id / "worker.json").read_text())
        os.kill(worker["process"]["pid"], signal.SIGKILL)
        assert server.wait(run_id) == "SUCCESS"
        records = of_run(deployment, run_id)
        succeeded = [one["partition"] for one in records if one["status"] == "succeeded"]
        assert sorted(succeeded) == keys, "each once"
        told = [one["partition"] for one in materializations(server, "samples")]
        assert sorted(told) == keys, "each once"
        assert len(records) < 2 * len(keys) - 9, "what had ended was not run again"


def test_functions_have_partitions_of_dagsters_own(deployment: Deployment) -> None:
    of = ("-f", str(deployment.home.parent / "functions.py"), "-a", "defs")
    tags = {"asset_partition_range_start": "1", "asset_partition_range_end": "3"}
    status, said = execute(deployment, "calculate", *of, **tags)
    assert status == 0, said
    found = {
        (one["analysis"], one["partition"]): Path(one["folder"], "outputs", "result.json").read_text()
        for one in deployment.records() if one["analysis"] in ("number", "doubled")
    }  # fmt: skip
    assert found == {("number", key): key for key in "123"} | {("doubled", key): str(2 * int(key)) for key in "123"}
    status, said = execute(
        deployment, "both_job", *of, **{"asset_partition_range_start": "1|a", "asset_partition_range_end": "2|b"}
    )
    assert status == 0, said
    assert {one["partition"] for one in deployment.records() if one["analysis"] == "both"} == {"1|a", "1|b", "2|a", "2|b"}


def test_a_range_without_any_is_no_success(deployment: Deployment) -> None:
    of = ("-f", str(deployment.home.parent / "functions.py"), "-a", "defs")
    status, said = execute(deployment, "calculate", *of, asset_partition_range_start="3", asset_partition_range_end="1")
    assert status == 1
    assert "There is no partition of 'number' from '3' to '1'." in said
