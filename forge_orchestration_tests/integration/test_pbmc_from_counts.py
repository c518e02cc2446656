"""The single-cell pipeline that ships, on its real counts: facts of the data, what is reused, and that it makes the same bytes."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from forge_orchestration.model.record import ExecutionRecord, record_from_json
from forge_orchestration_tests.conftest import PATIENCE, Forge
from forge_orchestration_tests.integration.dagster_support import REPOSITORY

ANALYSIS = "pbmc_from_counts"
FOLDER = REPOSITORY / "forge_orchestration" / "analyses" / ANALYSIS
COUNTS = FOLDER / "data" / "pbmc_1k_v3.chr21.h5"
STAGES = ["qc", "normalise", "clusters", "markers", "report"]
RUN_S = 900.0 * PATIENCE

BY_HAND = """
import collections, json, math, os, statistics
import h5py
with h5py.File(os.environ["FORGE_INPUTS"] + "/counts") as file:
    data, indices, indptr = (file["matrix"][name][:].tolist() for name in ("data", "indices", "indptr"))
cells = [slice(*pair) for pair in zip(indptr, indptr[1:])]
counts, genes = [sum(data[cell]) for cell in cells], [sum(count > 0 for count in data[cell]) for cell in cells]
def is_far(values):
    logs = [math.log(1 + value) for value in values]
    middle = statistics.median(logs)
    spread = 1.4826 * statistics.median(abs(log - middle) for log in logs)
    return [abs(log - middle) > 3 * spread for log in logs]
far = zip(is_far(counts), is_far(genes))
kept = [cell for cell, is_one, number in zip(cells, far, genes) if not any(is_one) and number >= 10]
seen_in = collections.Counter(gene for cell in kept for gene, count in zip(indices[cell], data[cell]) if count > 0)
kept_genes = sum(number >= 3 for number in seen_in.values())
print(json.dumps({"cells": len(cells), "cells_kept": len(kept), "genes_kept": kept_genes, "molecules": sum(counts)}))
"""
"""Quality control without scanpy, numpy and what the pipeline is made of."""


@dataclass
class Made:
    """A run of all stages."""

    records: list[ExecutionRecord]

    def path(self, output: str) -> Path:
        (found,) = (
            Path(record.folder, "outputs", one.path) for record in self.records for one in record.outputs if one.name == output
        )
        return found

    def rows(self, output: str) -> list[dict[str, str]]:
        with open(self.path(output), newline="") as file:
            return list(csv.DictReader(file))

    def numbers(self, output: str) -> dict:
        return json.loads(self.path(output).read_text())

    @property
    def hits(self) -> list[bool]:
        return [record.cache.hit for record in self.records]


def run(forge: Forge, *words: str | Path) -> Made:
    done = forge("run", "--json", ANALYSIS, *words, timeout=RUN_S)
    assert done.returncode == 0, done.stderr
    return Made([record_from_json(json.dumps(one)) for one in json.loads(done.stdout)])


@pytest.fixture(scope="module")
def home(forge_home: Path, have_runtime: Callable[[Forge, str], None]) -> Forge:
    forge = Forge(forge_home)
    have_runtime(forge, "forge-singlecell")
    return forge


@pytest.fixture(scope="module")
def made(home: Forge) -> Made:
    return run(home)


pytestmark = [pytest.mark.together, pytest.mark.timeout(1800 * PATIENCE)]


class TestTheData:
    def test_all_stages_ran_and_found_nothing_wrong(self, made: Made) -> None:
        assert [record.analysis for record in made.records] == [f"{ANALYSIS}.{stage}" for stage in STAGES]
        assert all(record.succeeded for record in made.records)
        checks = {check.name: check.passed for record in made.records for check in record.checks}
        assert checks == {"enough_cells": True, "same_with_other_seeds": True, "each_has_a_marker": True}

    def test_cells_and_genes_that_are_kept_are_those_of_another_computation(self, home: Forge, made: Made, tmp_path: Path) -> None:
        counts = shutil.copy(COUNTS, tmp_path)  # wherever this package lies, the folder of tests is one that inputs may come from
        done = home(
            "exec", "--runtime", "forge-singlecell", "--input", f"counts={counts}", "--", "python", "-c", BY_HAND, timeout=RUN_S
        )
        assert done.returncode == 0, done.stderr
        by_hand = json.loads(done.stdout)
        molecules = by_hand.pop("molecules")
        assert by_hand["cells"] == 1107, "what 10x Genomics counted"
        qc = made.numbers("qc_numbers")
        assert {name: qc[name] for name in by_hand} == by_hand
        quality = made.rows("quality")
        assert len(quality) == 1107 and sum(row["dropped"] == "" for row in quality) == by_hand["cells_kept"]
        assert sum(int(row["counts"]) for row in quality) == molecules
        assert {row["cell"] for row in made.rows("clusters")} == {row["cell"] for row in quality if row["dropped"] == ""}
        assert len(made.rows("genes")) == by_hand["genes_kept"]

    def test_clusters_are_the_kinds_of_cells_that_blood_has(self, made: Made) -> None:
        """Known of each kind from elsewhere; of the genes of chromosome 21."""
        total = len(made.rows("clusters"))
        assert 3 <= made.numbers("clusters_numbers")["clusters"] <= 6
        share = {name: sum(row["cluster"] == name for row in made.rows("clusters")) / total for name in "012"}
        markers = {name: [row for row in made.rows("markers") if row["cluster"] == name] for name in share}

        def cluster_of(gene: str) -> tuple[str, dict[str, str]]:
            """Where it is the most significant, of those where it is a marker at all."""
            found = [(row["cluster"], row) for rows in markers.values() for row in rows[:5] if row["gene"] == gene]
            return min(found, key=lambda one: float(one[1]["p_adjusted"]))

        monocytes, receptor = cluster_of("IFNGR2")
        b_cells, ligand = cluster_of("ICOSLG")
        assert monocytes != b_cells
        assert cluster_of("BACH1")[0] == monocytes
        assert float(receptor["p_adjusted"]) < 1e-60 and float(receptor["log2_fold_change"]) > 1
        assert float(receptor["fraction_in_cluster"]) > 2 * float(receptor["fraction_elsewhere"])
        assert float(ligand["p_adjusted"]) < 1e-10
        assert float(ligand["fraction_in_cluster"]) > 5 * float(ligand["fraction_elsewhere"])
        # of a healthy donor; most of the others are T cells
        assert 0.25 < share[monocytes] < 0.4 and 0.03 < share[b_cells] < 0.12
        assert max(share, key=lambda name: share[name]) not in (monocytes, b_cells)

    def test_the_report_needs_no_other_file(self, made: Made) -> None:
        page = made.path("report").read_text()
        assert "<script" not in page and "http" not in page
        (picture,) = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
        assert re.findall(r"(?:src|href)=.", page) == ['src="']
        assert base64.b64decode(picture) == made.path("picture").read_bytes()
        summary = made.numbers("summary")
        assert (summary["qc"], summary["clusters"]) == (made.numbers("qc_numbers"), made.numbers("clusters_numbers"))
        assert "IFNGR2" in page and all(f"<td>{one['cells']}</td>" in page for one in summary["by_cluster"])


class TestNothingTwice:
    def test_of_a_second_run_nothing_is_run(self, home: Forge, made: Made) -> None:
        assert run(home).hits == [True] * 5

    @pytest.mark.slow
    def test_another_resolution_begins_with_the_clusters(self, home: Forge, made: Made) -> None:
        finer = run(home, "--param", "resolution=1.0")
        assert finer.hits == [True, True, False, False, False]
        assert finer.numbers("clusters_numbers")["clusters"] > made.numbers("clusters_numbers")["clusters"]
        assert finer.numbers("qc_numbers") == made.numbers("qc_numbers")

    def test_a_stage_that_is_edited_begins_there(self, home: Forge, made: Made, tmp_path: Path) -> None:
        """And if it makes a byte by chance, its replay says which."""
        shutil.copytree(FOLDER, folder := tmp_path / ANALYSIS)
        script = folder / "report.py"
        planted = 'with open(outputs / "overview.png", "ab") as file:\n        file.write(os.urandom(16))'
        line = '(outputs / "summary.json").write_text('
        assert script.read_text().count(line) == 1
        script.write_text(script.read_text().replace(line, f"{planted}\n    {line}"))
        done = home("run", "--json", folder, timeout=RUN_S)
        edited = Made([record_from_json(json.dumps(one)) for one in json.loads(done.stdout)])
        assert edited.hits == [True, True, True, True, False]
        replayed = json.loads(home("replay", "--json", edited.records[-1].execution_id, timeout=RUN_S).stdout)
        assert replayed["verdict"] == "different"
        differences = {one["path"]: one["what"] for one in replayed["differences"]}
        assert set(differences) == {"overview.png", "report.html"}
        size = made.path("picture").stat().st_size
        assert size <= int(re.fullmatch(r"differs first at byte (\d+)", differences["overview.png"])[1]) < size + 16


class TestReplay:
    @pytest.mark.parametrize("stage", STAGES)
    def test_of_each_stage_is_identical(self, home: Forge, made: Made, stage: str) -> None:
        record = made.records[STAGES.index(stage)]
        done = home("replay", record.execution_id, timeout=RUN_S)
        assert done.returncode == 0 and done.stdout.startswith(f"identical: {len(record.outputs)} outputs of "), done

    def test_a_byte_in_what_a_stage_has_read_is_found(self, home: Forge, made: Made) -> None:
        kept = made.path("filtered")
        content = kept.read_bytes()
        planted = bytearray(content)
        planted[len(planted) // 2] ^= 1
        normalise = made.records[1].execution_id
        before = home.executions()
        try:
            kept.write_bytes(planted)
            done = home("replay", normalise, timeout=RUN_S)
        finally:
            kept.write_bytes(content)
        assert done.returncode == 2 and "is no longer what was collected" in done.stderr, done
        assert home.executions() == before


def test_through_dagster(home: Forge, made: Made) -> None:
    before = home.executions()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAGSTER_")}
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "job", "execute", "-m", "forge_orchestration.definitions", "-j", ANALYSIS],
        cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUN_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    records = [home.read_record(one) for one in sorted(home.executions() - before)]
    assert [(record.analysis, record.cache.hit) for record in records] == [(f"{ANALYSIS}.{stage}", True) for stage in STAGES]
    assert {one.path: one.sha256 for record in records for one in record.outputs} == {
        one.path: one.sha256 for record in made.records for one in record.outputs
    }
