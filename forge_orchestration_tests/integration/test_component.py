"""`type: forge_orchestration.Analysis` in a project that `dg` manages: found, scaffolded, checked, launched; and `forge run` takes the folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_orchestration_tests.integration.dagster_support import RUN_S, Deployment

pytestmark = pytest.mark.together

DEFINITIONS = """
from pathlib import Path
import dagster as dg

@dg.definitions
def defs():
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
PROJECT = (
    '[project]\nname = "lab"\nversion = "0.1"\n[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "lab"\n'
)


class Project:
    """A project, and the `dg` command in it."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.path = deployment.home.parent / "lab project"
        self.defs = self.path / "src" / "lab" / "defs"
        self.defs.mkdir(parents=True)
        (self.path / "pyproject.toml").write_text(PROJECT)
        (self.defs.parent / "__init__.py").write_text("")
        (self.defs.parent / "definitions.py").write_text(DEFINITIONS)

    def dg(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **self.deployment.environment,
            "VIRTUAL_ENV": sys.prefix,
            "DAGSTER_HOME": str(self.deployment.launch_folder()),
        }
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        environment["PYTHONPATH"] += f":{self.path / 'src'}"
        command = [str(Path(sys.executable).with_name("dg")), *words]
        return subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    deployment = Deployment(tmp_path_factory.mktemp("component"))
    deployment.build_runtime()
    made = Project(deployment)
    done = made.dg("scaffold", "defs", "forge_orchestration.Analysis", "hello")
    assert done.returncode == 0, done.stdout + done.stderr
    yield made


def test_it_is_listed(project: Project) -> None:
    assert "forge_orchestration.Analysis" in project.dg("list", "components").stdout


def test_what_is_scaffolded_runs(project: Project) -> None:
    assert sorted(path.name for path in (project.defs / "hello").iterdir()) == ["defs.yaml", "run.py"]
    done = project.dg(
        "launch", "--job", "hello", "--config-json", '{"ops": {"run_hello": {"config": {"params": {"name": "Ada"}}}}}'
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = [record for record in project.deployment.records() if record["analysis"] == "hello"]
    assert Path(record["folder"], "outputs", "greeting.txt").read_text() == "Hello, Ada.\n"
    assert record["limits"]["memory_bytes"] == 256 * 2**20
    assert "greeting.txt" in project.deployment.forge("run", str(project.defs / "hello"))


@pytest.mark.parametrize("wrong,said", [("  comand: [x]\n", "comand"), ("  limits: {memory: much}\n", "much")])
def test_what_is_wrong_is_found_before_anything_is_launched(project: Project, wrong: str, said: str) -> None:
    folder = project.defs / "wrong"
    folder.mkdir()
    file = folder / "defs.yaml"
    try:
        file.write_text(f"type: forge_orchestration.Analysis\nattributes:\n  command: [python, run.py]\n{wrong}")
        done = project.dg("check", "defs")
        assert done.returncode != 0
        assert said in done.stdout + done.stderr
    finally:
        file.unlink()
        folder.rmdir()


def test_an_analysis_yaml_will_do(project: Project) -> None:
    folder = project.defs / "counted"
    folder.mkdir()
    (folder / "defs.yaml").write_text("type: forge_orchestration.Analysis\n")
    (folder / "analysis.yaml").write_text("command: [python, -c, 'print(6 * 7)']\nruntime: forge-python\n")
    done = project.dg("list", "defs", "--json")
    assert done.returncode == 0, done.stderr
    assert '"counted"' in done.stdout


def test_partitions_and_a_schedule(project: Project) -> None:
    folder = project.defs / "windows"
    folder.mkdir()
    (folder / "defs.yaml").write_text(
        "type: forge_orchestration.Analysis\nattributes:\n  command: [sh, -c, 'echo $FORGE_PARTITION']\n  runtime: forge-python\n"
        "  partitions: {every: day, start: 2026-01-01}\n  schedule: '0 3 * * *'\n"
    )
    assert '"windows_schedule"' in project.dg("list", "defs", "--json").stdout
    done = project.dg("launch", "--assets", "windows", "--partition-range", "2026-01-01...2026-01-02")
    assert done.returncode == 0, done.stdout + done.stderr
    found = [record["partition"] for record in project.deployment.records() if record["analysis"] == "windows"]
    assert sorted(found) == ["2026-01-01", "2026-01-02"]
