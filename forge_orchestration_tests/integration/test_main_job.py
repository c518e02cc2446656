"""The main job on real data: through Dagster and through Python, in the real single-cell runtime, with the same result."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import forge_orchestration
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration_tests.conftest import Forge

pytestmark = pytest.mark.together

REPOSITORY = Path(__file__).resolve().parents[2]
ON = {"on"}


@pytest.fixture(scope="module")
def by_dagster(forge_home: Path, have_runtime: Callable[[Forge, str], None]) -> tuple[ExecutionRecord, str]:
    """The record and the log of `dagster job execute -m forge_orchestration.definitions -j pbmc_clusters`."""
    forge = Forge(forge_home)
    have_runtime(forge, "forge-singlecell")
    before = forge.executions()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAGSTER_")}
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "job", "execute", "-m", "forge_orchestration.definitions", "-j", "pbmc_clusters"],
        cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (one,) = forge.executions() - before
    return forge.read_record(one), done.stdout + done.stderr


@pytest.mark.timeout(1500)
def test_clusters_through_dagster(by_dagster: tuple[ExecutionRecord, str]) -> None:
    record, log = by_dagster
    assert record.succeeded and record.runtime is not None and record.runtime.name == "forge-singlecell"
    assert {output.name for output in record.outputs} == {"clusters", "markers", "picture", "summary", "cells"}
    assert record.isolation is not None
    states = set(record.isolation.protections.values())
    assert states == ON if os.geteuid() == 0 else states >= ON
    assert record.enforced["memory_bytes"].value == 2 << 30
    assert "Progress: " in log
    outputs = Path(record.folder, "outputs")
    with open(outputs / "clusters.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    summary = json.loads((outputs / "summary.json").read_text())
    # 700 published cells, of which the quality filter takes few; more clusters than one, fewer than a sorter would believe
    assert 650 <= len(cells) <= 700
    assert 5 <= len({cell["cluster"] for cell in cells}) <= 20
    # B cells and CD34+ progenitors are unmistakable: each has a cluster where nine in ten carry the published label
    for label in ("CD19+ B", "CD34+"):
        found = Counter(cell["cluster"] for cell in cells if cell["published_label"] == label).most_common(1)[0][0]
        members = [cell["published_label"] for cell in cells if cell["cluster"] == found]
        assert members.count(label) >= 0.9 * len(members)
    with open(outputs / "markers.csv", newline="") as file:
        markers = {row["gene"] for row in csv.DictReader(file)}
    assert {"MS4A1", "CD79A", "CD3D"} <= markers
    assert (outputs / "umap.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert summary


@pytest.mark.slow  # `test_pbmc_from_counts` replays the like of it
@pytest.mark.timeout(600)
def test_a_second_execution_gives_the_same_bytes(by_dagster: tuple[ExecutionRecord, str]) -> None:
    first, _ = by_dagster
    second = forge_orchestration.run("pbmc_clusters", check=True, cache="refresh")
    assert {one.path: one.sha256 for one in second.outputs} == {one.path: one.sha256 for one in first.outputs}


@pytest.mark.timeout(1500)
def test_numba_works_in_the_sandbox(by_dagster: tuple[ExecutionRecord, str], forge: Forge) -> None:
    """Compiled while it runs, on two threads. Here, because here is the runtime that has it."""
    code = """
    import os
    os.environ["NUMBA_NUM_THREADS"] = "2"
    import numba, numpy as np
    @numba.njit(parallel=True)
    def total(values):
        found = 0.0
        for at in numba.prange(values.size):
            found += values[at] ** 0.5
        return found
    print(round(total(np.arange(1000.0)), 3), numba.get_num_threads())
    """
    done = forge(
        "exec", "--runtime", "forge-singlecell", "--memory", "1GiB", "--", "python", "-c", textwrap.dedent(code), timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["21065.833", "2"]
