"""`dagster job execute`: config files, exit status, and where everything is stored."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from forge_orchestration_tests.integration.dagster_support import REPOSITORY, RUN_S, Deployment, processes_with, wait_for

pytestmark = pytest.mark.together

MARK = "dagster-cli-test-patient"

HOG = """
    import sys
    print("about to take too much", file=sys.stderr, flush=True)
    block = bytearray(1 << 30)
    for at in range(0, len(block), 4096):
        block[at] = 1
"""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    made = Deployment(tmp_path_factory.mktemp("cli"))
    made.build_runtime()
    made.add_analysis(
        "sum",
        """
        import json, os
        values = json.load(open(os.environ["FORGE_PARAMS"]))
        with open(os.path.join(os.environ["FORGE_OUTPUTS"], "sum.txt"), "w") as file:
            file.write(str(values["a"] + values["b"]))
        """,
        "outputs: {sum: sum.txt}\nparams: {a: {type: int, default: 1}, b: {type: int, default: 2}}\n",
    )
    made.add_analysis("hog", HOG, "limits: {memory: 64MiB}\n")
    made.add_analysis("patient", "import time; time.sleep(600)", command=f"[python, run.py, {MARK}]")
    return made


def test_two_config_files_are_merged_and_reach_the_execution(deployment: Deployment, tmp_path: Path) -> None:
    first, second = tmp_path / "limits.yaml", tmp_path / "it's -params.yaml"
    first.write_text("ops: {run_sum: {config: {limits: {memory: 100MiB}, seed: 7}}}\n")
    second.write_text("ops: {run_sum: {config: {params: {a: 40}}}}\n")
    done = deployment.job_execute("sum", first, second)
    assert done.returncode == 0, done.stderr
    record = deployment.records()[-1]
    assert record["parameters"] == {"a": 40, "b": 2}
    assert record["seed"] == 7
    assert record["enforced"]["memory_bytes"]["value"] == 100 * 2**20
    assert Path(record["folder"], "outputs/sum.txt").read_text() == "42"
    assert record["chosen_by"]["runtime"] == "analysis"


def test_a_failing_analysis_fails_the_command_with_the_records_sentence(deployment: Deployment) -> None:
    done = deployment.job_execute("hog")
    record = deployment.records()[-1]
    assert done.returncode == 1
    assert record["end_reason"] == "memory"
    assert f"Failure: {record['message']}" in done.stderr
    assert "STEP_UP_FOR_RETRY" not in done.stderr


def test_what_is_out_of_bounds_is_refused_before_a_run_is_made(deployment: Deployment, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("ops: {run_sum: {config: {threads: 0, limits: {memory: 9000TiB, wall_time: soon}}}}\n")
    before = len(deployment.records())
    done = deployment.job_execute("sum", config)
    assert done.returncode == 1
    for sentence in (
        "Limit 'memory' is",
        "that this deployment allows",
        "Limit 'wall_time' in the op config is",
        "'threads' is 0; it must",
    ):
        assert sentence in done.stderr
    assert "RUN_START" not in done.stderr
    assert len(deployment.records()) == before


def test_ctrl_c_ends_the_sandbox_and_the_record_says_canceled(deployment: Deployment) -> None:
    process = subprocess.Popen(
        deployment.job_command("patient"),
        cwd=REPOSITORY,
        env=deployment.environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        wait_for("the analysis", lambda: processes_with(MARK))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=RUN_S)
    finally:
        process.kill()
    record = deployment.records()[-1]
    assert process.returncode != 0
    assert record["analysis"] == "patient"
    assert record["end_reason"] == "canceled"
    assert record["message"] in said.decode()
    assert processes_with(MARK) == []


def test_a_file_that_is_edited_beside_a_guarded_analysis_is_a_warning_in_the_run(deployment: Deployment, tmp_path: Path) -> None:
    gate, genome = tmp_path / "gate", tmp_path / "genome.fa"
    gate.mkdir(mode=0o755)
    genome.write_text("ACGT")
    mark = "dagster-cli-test-gated"
    deployment.add_analysis(
        "gated",
        """
        import os, time
        while not os.path.exists("/forge/inputs/gate/open"):
            time.sleep(0.05)
        """,
        f"group: clinical\ninputs: {{gate: {{path: '{gate}'}}}}\n",
        command=f"[python, run.py, {mark}]",
    )
    settings = deployment.home / "settings.toml"
    before = settings.read_text()
    settings.write_text(f"{before}\n[guard]\ngroups = ['clinical']\npaths = ['{genome}']\n")
    try:
        process = subprocess.Popen(
            deployment.job_command("gated"), cwd=REPOSITORY, env=deployment.environment, stderr=subprocess.PIPE, start_new_session=True
        )  # fmt: skip
        try:
            wait_for("the analysis", lambda: processes_with(mark))
            genome.write_text("ACGA")
            (gate / "open").touch()
            _, said = process.communicate(timeout=RUN_S)
        finally:
            process.kill()
    finally:
        settings.write_text(before)
    record = deployment.records()[-1]
    assert process.returncode == 0 and record["status"] == "succeeded"
    assert [(one["target"], one["verdict"]) for one in record["guard"]["findings"]] == [(str(genome), "changed")]
    (line,) = [line for line in said.decode().splitlines() if "WARNING" in line and str(genome) in line]
    assert f"changed: {genome}: has other content" in line
    assert "Looking at 1 guarded path before the start." in said.decode()


@pytest.mark.parametrize("dagster_home", [None, REPOSITORY], ids=["from the repository", "elsewhere with DAGSTER_HOME"])
def test_dagster_stores_under_forge_home(deployment: Deployment, tmp_path: Path, dagster_home: Path | None) -> None:
    storage = deployment.home / "dagster"
    shutil.rmtree(storage, ignore_errors=True)
    if dagster_home is None:
        done = deployment.job_execute("sum")
    else:
        done = deployment.job_execute("sum", cwd=tmp_path, env={"DAGSTER_HOME": str(dagster_home)})
    assert done.returncode == 0, done.stderr
    run_id = deployment.records()[-1]["dagster_run_id"]
    assert (storage / "history/runs" / f"{run_id}.db").is_file()
    assert list((storage / "storage" / run_id / "compute_logs").glob("*.out")), "captured logs lie elsewhere"
    assert storage.stat().st_mode & 0o077 == 0
    assert not {"history", "schedules", "storage"} & {path.name for path in REPOSITORY.iterdir()}
    assert list(tmp_path.iterdir()) == []
