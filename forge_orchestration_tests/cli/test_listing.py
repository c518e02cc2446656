"""`forge executions`, `runtimes`, `analyses`, `doctor`, `gc`: plain when piped, JSON for machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration_tests.cli.conftest import SMALL, sentence
from forge_orchestration_tests.conftest import Forge, wait_until

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def first(forge_home: Path) -> ExecutionRecord:
    return Forge(forge_home).record("exec", *SMALL, "--", "sh", "-c", "echo out; echo err >&2; exit 3")


def tsv(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    """The rows of a plain table: no escape sequence, no padding, as many fields in each line as in the first."""
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout and "│" not in done.stdout
    head, *lines = (line.split("\t") for line in done.stdout.splitlines())
    assert lines and all(len(line) == len(head) for line in lines)
    return [dict(zip(head, line, strict=True)) for line in lines]


class TestExecutions:
    def test_a_list_is_tsv_when_piped(self, forge: Forge, first: ExecutionRecord) -> None:
        rows = tsv(forge("executions", "list", "--limit", "1000"))
        assert list(rows[0]) == ["execution", "analysis", "runtime", "status", "reason", "seconds"]
        (row,) = (row for row in rows if row["execution"] == first.execution_id)
        assert (row["analysis"], row["runtime"], row["status"], row["reason"]) == ("exec", "forge-python", "failed", "nonzero_exit")
        assert [row["execution"] for row in rows] == sorted((row["execution"] for row in rows), reverse=True)

    def test_color_is_not_forced_by_the_environment(self, forge: Forge, first: ExecutionRecord) -> None:
        tsv(forge("executions", "list", env={"FORCE_COLOR": "1", "TERM": "xterm-256color", "CLICOLOR_FORCE": "1"}))

    def test_filters(self, forge: Forge, first: ExecutionRecord) -> None:
        assert len(tsv(forge("executions", "list", "--limit", "1"))) == 1
        assert {row["status"] for row in tsv(forge("executions", "list", "--status", "failed"))} == {"failed"}
        nothing = forge("executions", "list", "--analysis", "nosuch")
        assert (nothing.returncode, nothing.stdout) == (0, "")
        assert json.loads(forge("executions", "list", "--analysis", "nosuch", "--json").stdout) == []

    def test_json(self, forge: Forge, first: ExecutionRecord) -> None:
        rows = json.loads(forge("executions", "list", "--limit", "1000", "--json").stdout)
        (row,) = (row for row in rows if row["execution_id"] == first.execution_id)
        assert (row["end_reason"], row["message"]) == ("nonzero_exit", first.message)

    def test_on_a_terminal_it_is_a_table(self, forge: Forge, first: ExecutionRecord) -> None:
        code = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
        done = subprocess.run(
            [sys.executable, "-c", code, *forge.command, "executions", "list", "--limit", "1"], env=forge.environment({"COLUMNS": "200"}),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "│" in done.stdout and "\t" not in done.stdout

    def test_show(self, forge: Forge, first: ExecutionRecord) -> None:
        done = forge("executions", "show", first.execution_id)
        assert done.returncode == 0 and "\x1b" not in done.stdout
        for word in (first.message, first.folder, "nonzero_exit", "forge-python", "memory_bytes", "stdout"):
            assert word in done.stdout

    def test_show_json_is_the_record(self, forge: Forge, first: ExecutionRecord) -> None:
        shown = forge("executions", "show", first.execution_id, "--json").stdout
        assert json.loads(shown) == json.loads((Path(first.folder) / "record.json").read_text())

    def test_last(self, forge: Forge) -> None:
        record = forge.record("exec", *SMALL, "--", "true")
        assert json.loads(forge("executions", "show", "last", "--json").stdout)["execution_id"] == record.execution_id

    def test_logs(self, forge: Forge, first: ExecutionRecord) -> None:
        done = forge("executions", "logs", first.execution_id)
        assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")
        assert forge("executions", "logs", first.execution_id, "--stream", "stdout").stdout == "out\n"
        assert forge("executions", "logs", first.execution_id, "--stream", "stderr").stdout == "err\n"
        assert forge("executions", "logs", first.execution_id, "--stream", "messages").stdout == ""

    def test_logs_of_one_that_ended_do_not_wait(self, forge: Forge, first: ExecutionRecord) -> None:
        assert forge("executions", "logs", first.execution_id, "--follow", timeout=20).stdout == "out\n"

    def test_logs_are_followed_to_the_end(self, forge: Forge, tmp_path: Path) -> None:
        """One command runs, another follows it from the middle: it sees each line once, and ends when the execution does."""
        script = "echo one; until test -e $FORGE_INPUTS/gate/open; do sleep 0.02; done; echo two"
        (tmp_path / "gate").mkdir(mode=0o755)
        with forge.started("exec", *SMALL, "--input", f"gate={tmp_path / 'gate'}", "--", "sh", "-c", script) as running:
            assert running.stdout.readline() == "one\n"
            with forge.started("executions", "logs", "last", "--follow") as following:
                assert following.stdout.readline() == "one\n"
                (tmp_path / "gate" / "open").touch()
                assert following.stdout.read() == "two\n"
                assert following.wait(20) == 0
            assert running.wait(20) == 0

    def test_one_that_runs_is_listed_as_running(self, forge: Forge) -> None:
        with forge.started("exec", *SMALL, "--", "sh", "-c", "echo ready; sleep 60") as running:
            assert running.stdout.readline() == "ready\n"
            wait_until("its status", lambda: "running" in forge("executions", "show", "last").stdout)
            running.terminate()
            assert running.wait(20) == 15
        assert json.loads(forge("executions", "show", "last", "--json").stdout)["status"] == "canceled"

    def test_messages_are_kept(self, forge: Forge) -> None:
        code = 'echo \'{"type": "progress", "fraction": 0.5, "message": "half \\u001b[2J"}\' > $FORGE_MESSAGES'
        assert forge.record("exec", *SMALL, "--", "sh", "-c", code).succeeded
        (line,) = forge("executions", "logs", "last", "--stream", "messages").stdout.splitlines()
        assert (json.loads(line)["fraction"], json.loads(line)["message"]) == (0.5, "half \ufffd[2J")


class TestRest:
    def test_runtimes(self, forge: Forge) -> None:
        rows = {row["runtime"]: row for row in tsv(forge("runtimes", "list"))}
        assert (rows["forge-python"]["state"], rows["forge-singlecell"]["state"]) == ("ready", "missing")
        as_json = {row["runtime"]: row for row in json.loads(forge("runtimes", "list", "--json").stdout)}
        assert as_json["forge-python"]["state"] == "ready"

    def test_a_runtime(self, forge: Forge) -> None:
        shown = json.loads(forge("runtimes", "show", "forge-python", "--json").stdout)
        assert (shown["name"], shown["state"], shown["findings"]) == ("forge-python", "ready", [])
        assert shown["build"]["content_digest"] in forge("runtimes", "show", "forge-python").stdout

    def test_building_what_is_built_is_quick_and_changes_nothing(self, forge: Forge) -> None:
        before = json.loads(forge("runtimes", "show", "forge-python", "--json").stdout)["build"]
        done = forge("runtimes", "build", "forge-python")
        assert done.returncode == 0 and "forge-python: ready" in done.stdout
        assert json.loads(forge("runtimes", "show", "forge-python", "--json").stdout)["build"] == before

    def test_analyses(self, forge: Forge) -> None:
        assert {row["analysis"] for row in tsv(forge("analyses"))} == {
            "colon_survival",
            "confinement",
            "islands_and_exons",
            "pbmc_clusters",
            "pbmc_from_counts",
            "tumour_kinds",
            "tumour_search",
            "yeast_expression",
        }
        assert {row["analysis"] for row in json.loads(forge("analyses", "--json").stdout)} == {
            "colon_survival",
            "confinement",
            "islands_and_exons",
            "pbmc_clusters",
            "pbmc_from_counts",
            "tumour_kinds",
            "tumour_search",
            "yeast_expression",
        }

    def test_doctor(self, forge: Forge) -> None:
        done = forge("doctor")
        assert done.returncode == 0, done.stdout
        assert "FAIL" not in done.stdout
        names = {result["name"] for result in json.loads(forge("doctor", "--json").stdout)}
        assert {"bubblewrap", "cgroups", "seal"} <= names

    def test_gc_after_nothing_happened(self, other_forge: Forge) -> None:
        other_forge.record("exec", *SMALL, "--", "true")
        report = json.loads(other_forge("gc", "--json").stdout)
        assert (report["closed"], report["problems"]) == ([], [])

    def test_help_and_version(self, forge: Forge) -> None:
        for words in (
            ("--help",),
            ("exec", "--help"),
            ("run", "--help"),
            ("executions", "--help"),
            ("runtimes", "build", "--help"),
        ):
            done = forge(*words)
            assert done.returncode == 0 and done.stdout.startswith("usage: forge") and done.stderr == ""
        assert forge("--version").stdout.startswith("forge ")

    def test_debug_shows_a_traceback(self, forge: Forge) -> None:
        done = forge("--debug", "exec", "--memory", "lots", "--", "true")
        assert done.returncode != 0 and "Traceback" in done.stderr


ANALYSIS = """
description: Says what it was given
command: [python, -u, run.py]
inputs: {reads: {path: reads.txt}}
outputs: {table: "*.csv"}
params: {n: {type: int, default: 3, min: 1}, word: {type: str, default: x}}
limits: {memory: 64MiB, pids: 20, scratch: 4MiB}
"""
SCRIPT = """
import json, os
params = json.load(open(os.environ["FORGE_PARAMS"]))
print(params["n"], params["word"], open(os.environ["FORGE_INPUTS"] + "/reads").read(), os.environ["FORGE_SEED"])
with open(os.environ["FORGE_MESSAGES"], "w") as messages:
    messages.write(json.dumps({"type": "progress", "fraction": 0.5, "message": "half \\x1b[2J"}) + "\\n")
    messages.write(json.dumps({"type": "metadata", "values": {"cells": 7}}) + "\\n")
open(os.environ["FORGE_OUTPUTS"] + "/a.csv", "w").write("1")
"""


class TestRun:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        made = tmp_path / "-my analyses ö'" / "mine"
        made.mkdir(parents=True)
        (made / "analysis.yaml").write_text(ANALYSIS)
        (made / "run.py").write_text(SCRIPT)
        (made / "reads.txt").write_text("ACGT")
        return made

    def test_an_analysis_in_a_folder(self, forge: Forge, folder: Path) -> None:
        record = forge.record("run", folder, "--param", "n=5", "--param", "word=-ö'", "--seed", "9")
        assert record.succeeded, record.message
        assert (record.analysis, record.parameters, record.seed) == ("mine", {"n": 5, "word": "-ö'"}, 9)
        assert Path(record.logs["stdout"].path).read_text() == "5 -ö' ACGT 9\n"
        assert [(one.name, one.path) for one in record.outputs] == [("table", "a.csv")]
        assert record.metadata == {"cells": 7}
        assert record.inputs[0].bytes == 4 and record.code.sha256
        assert record.limits.memory_bytes == 64 * 2**20

    def test_for_people(self, forge: Forge, folder: Path) -> None:
        done = forge("run", f"{folder}/", "--runtime", "forge-python", "--memory", "70MiB")
        assert done.returncode == 0, done.stderr
        assert "3 x ACGT 0\n" in done.stdout and "mine: succeeded (completed)" in done.stdout
        assert "outputs/a.csv" in done.stdout and "70.0 MiB" in done.stdout
        assert " 50%  half \ufffd[2J\n" in done.stderr and "\x1b" not in done.stderr + done.stdout

    def test_another_input(self, forge: Forge, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "other").write_text("TTTT")
        assert "3 x TTTT 0\n" in forge("run", folder, "--input", f"reads={tmp_path}/other").stdout

    def test_one_of_the_deployment_by_name(self, other_forge: Forge, folder: Path) -> None:
        (other_forge.home / "settings.toml").write_text(f"analysis_folders = [{json.dumps(str(folder.parent))}]")
        assert other_forge.record("run", "mine").succeeded

    def test_what_ran_is_what_is_kept(self, forge: Forge, folder: Path) -> None:
        record = forge.record("run", folder, "--cache", "refresh")
        (folder / "run.py").write_text("changed later")
        assert (Path(record.folder) / "analysis" / "run.py").read_text() == SCRIPT

    def test_one_that_fails_says_so_and_has_its_exit_status(self, forge: Forge, folder: Path) -> None:
        (folder / "run.py").write_text("raise SystemExit(4)")
        done = forge("run", folder)
        assert done.returncode == 1 and "mine: failed (nonzero_exit)" in done.stdout


class TestRuntimesThatAreNotAsTheyShouldBe:
    """Found, refused with the file's name, repaired; and kept from use by whoever says so."""

    def test_edited_found_refused_and_repaired(self, other_forge: Forge) -> None:
        forge = other_forge
        assert forge("runtimes", "verify", "--full").returncode == 0
        build = Path(json.loads(forge("runtimes", "show", "forge-python", "--json").stdout)["prefix"])
        (build / "lib" / "evil.pth").write_text("import os")
        done = forge("runtimes", "verify", "forge-python")
        assert done.returncode == 4 and "evil.pth was added" in done.stdout and "forge runtimes repair forge-python" in done.stdout
        refused = forge("exec", *SMALL, "--", "true")
        assert refused.returncode == 4 and "evil.pth was added" in refused.stderr
        assert forge("runtimes", "repair", "forge-python").returncode == 0
        assert forge("exec", *SMALL, "--", "true").returncode == 0
        assert not (forge.home / "runtimes/.retired").exists() or not any((forge.home / "runtimes/.retired").iterdir())

    def test_a_description_that_is_torn_is_told_and_built_anew(self, other_forge: Forge) -> None:
        """As a loss of power left it before builds were written out."""
        forge = other_forge
        prefix = json.loads(forge("runtimes", "show", "forge-python", "--json").stdout)["prefix"]
        Path(prefix).with_name("runtime.json").write_bytes(b"")
        sentence(forge("exec", *SMALL, "--", "true"), 4, "runtime.json cannot be read")
        assert forge("runtimes", "build", "forge-python").returncode == 0
        assert forge("exec", *SMALL, "--", "true").returncode == 0

    def test_quarantined_and_released(self, other_forge: Forge) -> None:
        forge = other_forge
        assert "quarantined" in forge("runtimes", "quarantine", "forge-python", "--reason", "wrong numbers").stdout
        refused = forge("exec", *SMALL, "--", "true")
        assert refused.returncode == 4 and "wrong numbers" in refused.stderr and "--release" in refused.stderr
        states = {row["runtime"]: row["state"] for row in json.loads(forge("runtimes", "list", "--json").stdout)}
        assert states["forge-python"] == "quarantined" and states["forge-ml"] == "missing"
        assert forge("runtimes", "quarantine", "--release", "forge-python").returncode == 0
        assert forge("exec", *SMALL, "--", "true").returncode == 0
        sentence(forge("runtimes", "quarantine", "forge-ml"), 4, "not built")

    def test_a_build_in_use_is_kept_until_it_is_not(self, other_forge: Forge) -> None:
        forge = other_forge
        retired = forge.home / "runtimes/.retired"
        with forge.started(
            "exec", *SMALL, "--", "sh", "-c", "echo up; read x </dev/null; sleep 20; ls /forge/runtime/bin/python"
        ) as running:
            assert running.stdout.readline() == "up\n"
            assert forge("runtimes", "repair", "forge-python").returncode == 0
            assert len(os.listdir(retired)) == 1
            assert forge("runtimes", "gc").stdout == ""
            running.send_signal(signal.SIGTERM)
            running.communicate(timeout=30)
        assert "removed: forge-python" in forge("runtimes", "gc").stdout and os.listdir(retired) == []


class TestHealth:
    def test_all_is_well(self, other_forge: Forge) -> None:
        other_forge.record("exec", *SMALL, "--", "sh", "-c", "echo 1 > $FORGE_OUTPUTS/one")
        done = other_forge("health", "--full", "--json", timeout=200)
        results = json.loads(done.stdout)
        assert done.returncode == 0, [result for result in results if not result["passed"]]
        found = {(result["target"], result["name"]): result for result in results}
        assert "1 outputs that were read" in found["storage", "outputs"]["finding"]
        assert "as they were built" in found["forge-python", "content"]["finding"]
        assert {"filesystem", "keyring"} <= {name for target, name in found if target == "host"}

    def test_what_is_wrong_is_an_exit_status_and_a_line(self, other_forge: Forge) -> None:
        record = other_forge.record("exec", *SMALL, "--", "sh", "-c", "echo 1 > $FORGE_OUTPUTS/one")
        Path(record.folder, "outputs/one").write_text("2")
        (other_forge.home / "settings.toml").write_text(f"[protected_databases]\nlab = 'sqlite:///{other_forge.home}/no.db'\n")
        done = other_forge("health")
        assert done.returncode == 3
        lines = [line.split() for line in done.stdout.splitlines()]
        assert ["FAIL", "storage", "outputs"] in [line[:3] for line in lines]
        assert ["FAIL", "lab", "connection"] in [line[:3] for line in lines]
