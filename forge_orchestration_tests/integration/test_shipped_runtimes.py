"""The runtimes that ship, each really built, and an analysis of real data in each. (`forge-singlecell` has the main job.)"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration_tests import conftest
from forge_orchestration_tests.conftest import Forge, host_packages
from forge_orchestration_tests.integration import forge_functions
from forge_orchestration_tests.integration.dagster_support import REPOSITORY

pytestmark = pytest.mark.together

BUILD_S = 900


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory, have_runtime: Callable[[Forge, str], None]) -> Iterator[Forge]:
    home = tmp_path_factory.mktemp("shipped") / "home"
    home.mkdir(mode=0o700)
    conftest._homes.append(home)
    forge = Forge(home)
    for name in ("forge-genomics", "forge-ml"):
        have_runtime(forge, name)
    yield forge


def run(forge: Forge, runtime: str, analysis: str) -> tuple[ExecutionRecord, dict[str, Path]]:
    record = forge.record("run", analysis, timeout=BUILD_S)
    assert record.succeeded, record.message
    assert record.runtime is not None and (record.runtime.name, record.runtime.chosen_by) == (runtime, "analysis")
    return record, {output.name: Path(record.folder, "outputs", output.path) for output in record.outputs}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.timeout(1200)
def test_genomics_on_real_islands_and_exons(forge: Forge) -> None:
    _, outputs = run(forge, "forge-genomics", "islands_and_exons")
    enrichment = {row["chrom"]: row for row in rows(outputs["enrichment"])}
    assert {"chrX", "chrY"} <= set(enrichment)
    assert float(enrichment["chrX"]["fold"]) > 1, "islands meet exons more often than by chance"


@pytest.mark.timeout(1200)
def test_machine_learning_on_real_tumours(forge: Forge) -> None:
    _, outputs = run(forge, "forge-ml", "tumour_kinds")
    assert len(rows(outputs["predictions"])) == 569
    assert all(float(row["auc"]) > 0.9 for row in rows(outputs["metrics"]))


@pytest.mark.timeout(1200)
def test_frames_of_functions_are_parquet(forge: Forge) -> None:
    """Two assets, of which one makes a frame and the other reads it, by `dagster job execute`."""
    command = [sys.executable, "-m", "dagster", "job", "execute", "-f", str(forge_functions.__file__), "-a", "defs", "-j", "tables"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "FORGE_HOME": str(forge.home)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    made = {record.analysis: record for record in map(forge.read_record, forge.executions())}
    table, total = made["table"], made["total"]
    assert [output.path for output in table.outputs] == ["result.parquet"]
    (result,) = total.outputs
    assert json.loads(Path(total.folder, "outputs", result.path).read_text()) == {"sum": 3, "kind": "category"}


@pytest.fixture(scope="module")
def r_installed() -> None:
    host_packages("r-base-core", "r-recommended", "r-cran-jsonlite")


@pytest.mark.usefixtures("r_installed")
class TestR:
    def test_survival_of_real_patients(self, forge: Forge) -> None:
        assert forge("runtimes", "build", "forge-r", timeout=BUILD_S).returncode == 0
        record, outputs = run(forge, "forge-r", "colon_survival")
        assert record.runtime is not None and record.runtime.kind == "system"
        summary = json.loads(outputs["summary"].read_text())
        assert (summary["patients"], summary["events"]) == (929, 452)
        assert summary["hazard_ratio_treated"] == pytest.approx(0.67, abs=0.02), "as published for levamisole with fluorouracil"
        assert outputs["picture"].read_bytes().startswith(b"\x89PNG")
        assert record.metadata["patients"] == 929

    def test_a_full_verification_asks_dpkg(self, forge: Forge) -> None:
        assert forge("runtimes", "build", "forge-r", timeout=BUILD_S).returncode == 0
        done = forge("runtimes", "verify", "--full", "--json", "forge-r", timeout=BUILD_S)
        assert done.returncode == 0, done.stdout
        (verified,) = json.loads(done.stdout)
        assert verified["state"] == "ready" and verified["files"] > 1000

    @pytest.mark.parametrize(
        ("lock", "words"),
        [
            ('[debian-12]\n"r-base-core" = "1.0"', "needs the package r-base-core 1.0, which has version"),
            ('[debian-12]\n"no-such-package" = "1.0"', "no-such-package 1.0, which is not installed"),
            ('[plan-9]\n"r-base-core" = "1.0"', "holds for plan-9, and this is"), ("[debian-12", "cannot be read"),
            ('[debian-12]\n"../x" = "1"', "is wrong at '../x'"), ("[debian-12]\nr = 4", "is wrong at 'r'"),
        ],
    )  # fmt: skip
    def test_a_lock_that_does_not_hold_here(self, forge: Forge, lock: str, words: str) -> None:
        folder = forge.home / "definitions" / "other-r"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "packages.toml").write_text(lock)
        (folder / "runtime.toml").write_text('kind = "system"\nlock = "packages.toml"\n')
        built = forge("runtimes", "build", "other-r")
        assert built.returncode == 4 and words in built.stderr, built.stderr

    def test_what_is_installed_here_can_be_locked(self, forge: Forge) -> None:
        added = forge("runtimes", "add", "only-r", "--packages", "r-base-core")
        assert added.returncode == 0, added.stderr
        assert forge("runtimes", "build", "only-r").returncode == 0
        refused = forge("runtimes", "add", "nothing", "--packages", "no-such-package")
        assert refused.returncode == 4 and "no-such-package is not installed" in refused.stderr
        assert not (forge.home / "definitions" / "nothing").exists()
