"""Analyses in stages: each has its own record, is reused by itself, and reads what this very request has made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import dagster as dg
import pytest

import forge_orchestration
from forge_orchestration.model.record import ExecutionRecord, record_from_json
from forge_orchestration_tests.conftest import PATIENCE, Forge
from forge_orchestration_tests.integration.dagster_support import Deployment

pytestmark = pytest.mark.together

HEAD = """\
import json, os, time
from pathlib import Path
inputs, outputs = Path(os.environ["FORGE_INPUTS"]), Path(os.environ["FORGE_OUTPUTS"])
params = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())
"""
SCRIPTS = {
    "draw.py": "(outputs / 'numbers.txt').write_text(' '.join(str(i * params['n']) for i in range(5)))\ntime.sleep(params.get('wait', 0))\n",
    "add.py": "numbers = (inputs / 'numbers').read_text().split()\n(outputs / 'sum.txt').write_text(str(sum(map(int, numbers)) + params['k']))\n",
    "tell.py": "(outputs / 'told.txt').write_text((inputs / 'numbers').read_text() + ' = ' + (inputs / 'sum').read_text())\n",
}
DEFINITION = """\
description: Numbers, their sum, and both
runtime: forge-python
params: {n: {type: int, default: 1}, k: {type: int, default: 0}, wait: {type: float, default: 0}}
limits: {memory: 200MiB}
stages:
  tell:
    command: [python, tell.py]
    files: [tell.py]
    params: []
    inputs: {numbers: {path: "stage://draw/numbers"}, sum: {path: "stage://add/sum"}}
    outputs: {told: told.txt}
  add:
    description: The sum
    command: [python, add.py]
    files: [add.py]
    params: [k]
    inputs: {numbers: {path: "stage://draw/numbers"}}
    outputs: {sum: sum.txt}
    limits: {memory: 100MiB}
  draw:
    command: [python, draw.py]
    files: [draw.py]
    params: [n, wait]
    outputs: {numbers: numbers.txt}
"""


def write(folder: Path, definition: str = DEFINITION) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in SCRIPTS.items():
        (folder / name).write_text(HEAD + text)
    (folder / "analysis.yaml").write_text(definition)
    return folder


@pytest.fixture
def analysis(tmp_path: Path) -> Path:
    return write(tmp_path / "analyses" / "numbers")


def run(forge: Forge, analysis: Path, *words: str) -> list[ExecutionRecord]:
    done = forge("run", "--json", analysis, *words)
    records = json.loads(done.stdout)
    return [record_from_json(json.dumps(one)) for one in (records if isinstance(records, list) else [records])]


def told(records: list[ExecutionRecord]) -> str:
    return Path(records[-1].folder, "outputs", "told.txt").read_text()


def test_each_behind_what_it_reads(other_forge: Forge, analysis: Path) -> None:
    records = run(other_forge, analysis, "--param", "n=2", "--param", "k=5")
    assert [one.analysis for one in records] == ["numbers.draw", "numbers.add", "numbers.tell"]
    assert all(one.succeeded and not one.cache.hit for one in records) and told(records) == "0 2 4 6 8 = 25"
    assert [one.parameters for one in records] == [{"n": 2, "wait": 0}, {"k": 5}, {}]
    assert [one.limits.memory_bytes >> 20 for one in records] == [200, 100, 200]
    assert {one.source for one in records[2].inputs} == {
        f"execution://{records[0].execution_id}/numbers.txt", f"execution://{records[1].execution_id}/sum.txt",
    }  # fmt: skip


def test_only_what_depends_on_a_change_runs_again(other_forge: Forge, analysis: Path) -> None:
    run(other_forge, analysis)
    assert [one.cache.hit for one in run(other_forge, analysis)] == [True, True, True]
    why = other_forge("why", analysis, "--param", "k=1").stdout.splitlines()
    assert why[0].startswith("numbers.draw: It would not run") and why[1].startswith("numbers.add: It would run: since execution")
    assert "this has changed: param/k from 0 to 1." in why[1]
    assert why[-1] == "numbers.tell: It would run, because it reads what 'numbers.add' makes, which would run."
    again = run(other_forge, analysis, "--param", "k=1")
    assert [one.cache.hit for one in again] == [True, False, False] and told(again) == "0 1 2 3 4 = 11"
    (analysis / "tell.py").write_text(HEAD + SCRIPTS["tell.py"].replace("' = '", "' is '"))
    assert [one.cache.hit for one in run(other_forge, analysis)] == [True, True, False]
    # back to what was there at first: by content, not by what is the latest
    write(analysis)
    first = run(other_forge, analysis)
    assert [one.cache.hit for one in first] == [True, True, True] and told(first) == "0 1 2 3 4 = 10"


def test_one_that_fails_is_the_last_and_the_next_time_the_first(other_forge: Forge, analysis: Path) -> None:
    (analysis / "add.py").write_text("raise SystemExit(3)")
    failed = other_forge("run", analysis)
    assert failed.returncode == 1 and "numbers.add: failed (nonzero_exit)" in failed.stdout and "numbers.tell" not in failed.stdout
    write(analysis)
    assert [one.cache.hit for one in run(other_forge, analysis)] == [True, False, False]


def test_two_requests_at_once_read_each_its_own(other_forge: Forge, analysis: Path) -> None:
    words = [(f"n={n}", f"wait={PATIENCE}") for n in (2, 3)]
    command = [*other_forge.command, "run", "--json", str(analysis)]
    running = [
        subprocess.Popen(
            [*command, "--param", n, "--param", wait],
            env=other_forge.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for n, wait in words
    ]
    records = [[record_from_json(json.dumps(one)) for one in json.loads(process.communicate()[0])] for process in running]
    assert [told(one) for one in records] == ["0 2 4 6 8 = 20", "0 3 6 9 12 = 30"]


def test_one_stage_alone(other_forge: Forge, analysis: Path) -> None:
    missing = other_forge("run", analysis, "--stage", "add")
    assert missing.returncode == 2 and "no execution of 'numbers.draw' has succeeded" in missing.stderr
    assert run(other_forge, analysis, "--stage", "draw")[0].succeeded
    assert run(other_forge, analysis, "--stage", "add", "--runtime", "forge-python")[0].succeeded
    assert other_forge("fingerprint", analysis, "--stage", "add").returncode == 0
    (other_forge.home / "settings.toml").write_text(f'analysis_folders = ["{analysis.parent}"]\n')
    assert other_forge.record("run", "numbers.tell").succeeded


def test_a_file_beside_it_may_be_read_wherever_that_is(other_forge: Forge, analysis: Path) -> None:
    """Also one that is not among the `files` of the stage: those are what it runs, not what it reads."""
    (other_forge.home / "settings.toml").write_text('allowed_input_roots = ["/nowhere"]\n')
    text = DEFINITION.replace("files: [draw.py]", "files: [draw.py]\n    inputs: {beside: {path: data/beside.txt}}")
    (analysis / "analysis.yaml").write_text(text)
    (analysis / "data").mkdir()
    (analysis / "data" / "beside.txt").write_text("beside")
    (analysis.parent / "outside.txt").write_text("outside")
    (record,) = run(other_forge, analysis, "--stage", "draw")
    assert record.succeeded and [Path(one.source).name for one in record.inputs] == ["beside.txt"]
    (analysis / "analysis.yaml").write_text(text.replace("data/beside.txt", "../outside.txt"))
    refused = other_forge("run", analysis, "--stage", "draw")
    assert refused.returncode == 2 and "is not in the folders that inputs may come from" in refused.stderr


def test_from_python(other_forge: Forge, analysis: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(other_forge.home))
    record = forge_orchestration.run(str(analysis), params={"n": 4, "k": 1})
    assert record.analysis == "numbers.tell" and told([record]) == "0 4 8 12 16 = 41"


def test_one_goes_on_from_its_checkpoint(other_forge: Forge, analysis: Path) -> None:
    script = """\
    with __import__("forge_checkpoint").open() as cp:
        print("from", cp.done)
        for item in cp.remaining(range(8)):
            time.sleep(0.2)
            cp.save(item)
    """.replace("    with", "with").replace("\n    ", "\n")
    (analysis / "add.py").write_text(HEAD + script + SCRIPTS["add.py"])
    stopped = run(other_forge, analysis, "--wall-time", "1s")
    assert [str(one.end_reason) for one in stopped] == ["completed", "wall_time"]
    records = run(other_forge, analysis)
    assert [one.cache.hit for one in records] == [True, False, False]
    assert records[1].checkpoint is not None and records[1].checkpoint.resumed_from == stopped[1].execution_id
    assert Path(records[1].folder, "stdout.log").read_text() != "from 0\n"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "stage://draw/numbers",
            "stage://nothing/numbers",
            "is of stage 'nothing', which there is not. The stages: tell, add, draw.",
        ),
        (
            "stage://draw/numbers",
            "stage://draw/others",
            "is output 'others' of stage 'draw', which has none such. It has: numbers.",
        ),
        ("{told: told.txt}", "{sum: told.txt}", "Output 'sum' in "),
        (
            "outputs: {numbers: numbers.txt}",
            "inputs: {s: {path: 'stage://add/sum'}}\n    outputs: {numbers: numbers.txt}",
            "wait for one another in a circle: ",
        ),
        ("stage://draw/numbers", "asset://numbers.add/sum", "of the analysis itself. Write stage://STAGE/OUTPUT."),
        ("params: [k]", "params: [q]", "Stage 'add' in "),
        ("stages:", "command: ['true']\nstages:", "'command' in "),
        ("stages:", "inputs: {x: {path: y}}\nstages:", "'inputs' in "),
        ("  add:", "  a-d:", "'a-d' cannot be a stage's name."),
        ("command: [python, add.py]", "comand: [x]", "unknown field `comand`"),
        ("command: [python, add.py]", "command: []", "There is no command to run in stage 'add' of "),
    ],
)
def test_what_does_not_fit_together_is_a_sentence(other_forge: Forge, analysis: Path, old: str, new: str, said: str) -> None:
    text = (analysis / "analysis.yaml").read_text()
    assert old in text
    (analysis / "analysis.yaml").write_text(text.replace(old, new, 1))
    done = other_forge("run", analysis)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert other_forge.executions() == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--runtime", "forge-python"), "has stages, and it is not said which of them the runtime is for"), (("--stage", "x"), "has no stage 'x'"),
        (("--param", "q=1"), "has no parameter 'q'"), (("--input", "q=1"), "has no input 'q'"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_a_sentence(other_forge: Forge, analysis: Path, words: tuple[str, ...], said: str) -> None:
    done = other_forge("run", analysis, *words)
    assert done.returncode == 2 and said in done.stderr, done.stderr


class TestDagster:
    @pytest.fixture(scope="class")
    @staticmethod
    def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
        made = Deployment(tmp_path_factory.mktemp("stages"), reuse=True)
        made.build_runtime()
        write(made.analyses / "numbers")
        return made

    def test_they_are_assets_with_their_edges_and_one_job(self, deployment: Deployment) -> None:
        from forge_orchestration.orchestration.definitions import build_definitions
        from forge_orchestration.settings import load_settings

        with dg.instance_for_test():
            defs = build_definitions(load_settings(deployment.home))
            specs = {tuple(spec.key.path): spec for spec in defs.resolve_all_asset_specs()}
            job = defs.resolve_job_def("numbers")
        edges = {key: {tuple(dep.asset_key.path) for dep in specs[key].deps} for key in specs if key[0] == "numbers"}
        draw, add, tell = (("numbers", name) for name in ("draw", "add", "tell"))
        assert edges == {draw: set(), add: {draw}, tell: {draw, add}}
        assert {tuple(key.path) for key in job.asset_layer.selected_asset_keys} == {draw, add, tell}
        assert "The sum" in (specs[add].description or "")

    def test_ops_of_one_name_do_not_take_all_down(self, tmp_path: Path) -> None:
        from forge_orchestration.orchestration.definitions import build_definitions
        from forge_orchestration.settings import load_settings

        made = Deployment(tmp_path)
        write(made.analyses / "numbers")
        made.add_analysis("numbers__add")
        made.add_analysis("run_numbers__tell")
        with dg.instance_for_test():
            specs = build_definitions(load_settings(made.home)).resolve_all_asset_specs()
        broken = {spec.key.path[-1] for spec in specs if spec.group_name == "broken"}
        assert broken and broken <= {
            "numbers",
            "numbers_",
            "numbers__add",
            "numbers__add_",
            "run_numbers__tell",
            "run_numbers__tell_",
        }

    def test_a_run_of_all_and_what_is_reused(self, deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = deployment.job_execute("numbers")
        assert first.returncode == 0, first.stderr[-3000:]
        config = tmp_path / "k.yaml"
        config.write_text("ops: {run_numbers__add: {config: {params: {k: 7}, limits: {memory: 90MiB}}}}\n")
        assert deployment.job_execute("numbers", config).returncode == 0
        records = [one for one in deployment.records() if one["analysis"].startswith("numbers.")]
        assert [(one["analysis"], one["cache"]["hit"]) for one in records] == [
            ("numbers.draw", False), ("numbers.add", False), ("numbers.tell", False),
            ("numbers.draw", True), ("numbers.add", False), ("numbers.tell", False),
        ]  # fmt: skip
        assert Path(records[-1]["folder"], "outputs", "told.txt").read_text() == "0 1 2 3 4 = 17"
        monkeypatch.setenv("FORGE_HOME", str(deployment.home))
        with dg.DagsterInstance.from_config(str(deployment.launch_folder())) as instance:
            found = instance.fetch_materializations(dg.AssetKey(["numbers", "draw"]), limit=5).records
        assert len({one.asset_materialization.tags["dagster/data_version"] for one in found}) == 1 and len(found) == 2
