"""The search for the best model on real tumours: stopped in the middle, gone on, published, replayed; and what it says computed by hand."""

from __future__ import annotations

import collections
import csv
import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from forge_orchestration.model.record import ExecutionRecord, record_from_json
from forge_orchestration_tests import conftest
from forge_orchestration_tests.conftest import PATIENCE, Forge, wait_until
from forge_orchestration_tests.integration.dagster_support import REPOSITORY

NAME = "tumour_search"
STAGES = [f"{NAME}.{stage}" for stage in ("folds", "search", "card")]
RUN_S = 600.0 * PATIENCE
TRIALS, SEEN_BEFORE_THE_KILL = 12, 3
LINE = "logistic regression"
SHARE_ALONE = 0.6603
"""Log loss of who says for each patient that 212 of 569 are malignant."""


class Ended(NamedTuple):
    """A search of which the controller was killed in the middle, and the one that went on."""

    killed: ExecutionRecord
    records: dict[str, ExecutionRecord]


def run(forge: Forge, *words: str) -> list[ExecutionRecord]:
    done = forge("run", "--json", NAME, "--param", f"trials={TRIALS}", *words, timeout=RUN_S)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    return [record_from_json(json.dumps(one)) for one in (found if isinstance(found, list) else [found])]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def output(record: ExecutionRecord, name: str) -> Path:
    (found,) = (one.path for one in record.outputs if one.name == name)
    return Path(record.folder, "outputs", found)


def tried(record: ExecutionRecord) -> list[int]:
    """Numbers of the trials that an execution has finished, as it said while it ran."""
    log = Path(record.folder, "stdout.log")
    return [int(number) for number in re.findall(r"^trial (\d+) of", log.read_text(), re.MULTILINE)] if log.exists() else []


def in_table(forge: Forge, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{forge.home}/results.db?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory, have_runtime: Callable[[Forge, str], None]) -> Iterator[Forge]:
    home = tmp_path_factory.mktemp("search") / "home"
    home.mkdir(mode=0o700)
    conftest._homes.append(home)
    forge = Forge(home)
    have_runtime(forge, "forge-ml")
    yield forge


@pytest.fixture(scope="module")
def ended(forge: Forge) -> Ended:
    with forge.started("run", NAME, "--param", f"trials={TRIALS}") as process:

        def search_that_has_tried() -> ExecutionRecord | None:
            assert process.poll() is None, "it has ended before it was killed"
            for one in sorted(forge.executions()):
                path = forge.home / "executions" / one / "record.json"
                if path.exists() and (record := forge.read_record(one)).analysis == STAGES[1]:
                    return record if len(tried(record)) >= SEEN_BEFORE_THE_KILL else None
            return None

        found = wait_until("some trials", search_that_has_tried, RUN_S)
        process.send_signal(signal.SIGKILL)
    records = run(forge)
    assert [one.analysis for one in records] == STAGES
    return Ended(forge.read_record(found.execution_id), dict(zip(("folds", "search", "card"), records, strict=True)))


pytestmark = [pytest.mark.together, pytest.mark.timeout(1800 * PATIENCE)]


class TestStopped:
    def test_no_trial_is_lost_and_none_done_twice(self, ended: Ended) -> None:
        search = ended.records["search"]
        assert str(ended.killed.status) == "lost" and ended.records["folds"].cache.hit
        assert search.checkpoint is not None and search.checkpoint.resumed_from == ended.killed.execution_id
        before, after = tried(ended.killed), tried(search)
        assert SEEN_BEFORE_THE_KILL <= len(before) < TRIALS
        assert before + after == list(range(1, TRIALS + 1))
        messages = Path(search.folder, "messages.jsonl").read_text()
        assert f"goes on after trial {len(before)} of {TRIALS}" in messages

    @pytest.mark.parametrize("stage", ["folds", "search", "card"])
    def test_a_replay_that_nobody_stops_makes_the_same_bytes(self, forge: Forge, ended: Ended, stage: str) -> None:
        before = forge.executions()
        done = forge("replay", ended.records[stage].execution_id, timeout=RUN_S)
        assert done.returncode == 0 and done.stdout.startswith(f"identical: {len(ended.records[stage].outputs)} output"), done
        (again,) = map(forge.read_record, forge.executions() - before)
        assert stage != "search" or tried(again) == list(range(1, TRIALS + 1)), "it has tried all of them anew"

    def test_each_trial_is_in_the_table_once_also_when_nothing_is_run_again(self, forge: Forge, ended: Ended) -> None:
        search = ended.records["search"]
        assert all(one.cache.hit for one in run(forge))
        query = f"SELECT trial, kind, penalty, trees, log_loss, auc FROM tumour_trials WHERE execution_id = '{search.execution_id}' ORDER BY trial"
        wanted = [
            (
                int(one["trial"]),
                one["kind"],
                float(one["penalty"] or "nan"),
                int(one["trees"] or -1),
                float(one["log_loss"]),
                float(one["auc"]),
            )
            for one in rows(output(search, "trials"))
        ]
        found = [
            (trial, kind, math.nan if penalty is None else penalty, -1 if trees is None else trees, *rest)
            for trial, kind, penalty, trees, *rest in in_table(forge, query)
        ]
        assert len(found) == TRIALS and repr(found) == repr(wanted)
        others = in_table(forge, f"SELECT DISTINCT execution_id FROM tumour_trials WHERE execution_id != '{search.execution_id}'")
        assert ended.killed.execution_id not in {one for (one,) in others}
        assert json.loads(forge("gc", "--json").stdout)["problems"] == []
        assert len(in_table(forge, query)) == TRIALS


def area(outcomes: np.ndarray, probabilities: np.ndarray) -> float:
    """Under the curve: the share of pairs of which the ill one has the higher probability."""
    ill, well = probabilities[outcomes == 1], probabilities[outcomes == 0]
    return sum((one > other) + (one == other) / 2 for one in ill for other in well) / len(ill) / len(well)


def loss(outcomes: np.ndarray, probabilities: np.ndarray) -> float:
    return -float(np.mean(np.log(np.where(outcomes == 1, probabilities, 1 - probabilities))))


def straight_line(measured: np.ndarray, outcomes: np.ndarray, penalty: float, others: np.ndarray) -> np.ndarray:
    """Probabilities of others by the line that has the least loss, with half of `penalty` for each squared slope; by Newton's steps."""
    mean, spread = measured.mean(0), measured.std(0)
    design = np.column_stack([np.ones(len(measured)), (measured - mean) / spread])
    costs = np.r_[0.0, np.full(measured.shape[1], penalty)]
    slopes = np.zeros(design.shape[1])

    def cost(at: np.ndarray) -> float:
        return float(np.sum(np.logaddexp(0, design @ at) - outcomes * (design @ at)) + 0.5 * np.sum(costs * at**2))

    for _ in range(100):
        said = 1 / (1 + np.exp(-design @ slopes))
        gradient = design.T @ (said - outcomes) + costs * slopes
        if np.abs(gradient).max() < 1e-9:
            break
        step = np.linalg.solve(design.T @ (design * (said * (1 - said))[:, None]) + np.diag(costs), gradient)
        length = 1.0
        while cost(slopes - length * step) > cost(slopes) and length > 1e-6:
            length /= 2
        slopes = slopes - length * step
    return 1 / (1 + np.exp(-np.column_stack([np.ones(len(others)), (others - mean) / spread]) @ slopes))


def numbers(path: Path, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a file of patients: their numbers, outcomes, and measurements from column `first` on."""
    table = np.array([list(map(float, one.values())) for one in rows(path)])
    return table[:, 0].astype(int), table[:, 1].astype(int), table[:, first:]


class TestFacts:
    def test_the_parts_are_of_the_real_table_and_alike(self, forge: Forge, ended: Ended) -> None:
        (source,) = (forge.home / "runtimes" / "forge-ml").glob(
            "*/prefix/lib/*/site-packages/sklearn/datasets/data/breast_cancer.csv"
        )
        table = np.loadtxt(source, delimiter=",", skiprows=1)
        folds = ended.records["folds"]
        parts = {name: numbers(output(folds, name), first) for name, first in (("searched", 3), ("held_out", 2))}
        together = np.concatenate([parts["searched"][0], parts["held_out"][0]])
        assert sorted(together) == list(range(569)), "each patient is in one part"
        for patients, outcomes, measured in parts.values():
            assert (outcomes == 1 - table[patients, -1]).all() and (measured == table[patients, :-1]).all()
        # a quarter of 212 and of 357
        assert collections.Counter(parts["held_out"][1]) == {1: 53, 0: 89}
        dealt = collections.Counter((one["fold"], one["outcome"]) for one in rows(output(folds, "searched")))
        ill, well = ([dealt[str(fold), outcome] for fold in range(5)] for outcome in "10")
        assert (sum(ill), sum(well)) == (159, 268) and max(ill) - min(ill) <= 1 and max(well) - min(well) <= 1
        assert (folds.metadata["patients"], folds.metadata["malignant"]) == (569, 212)
        assert [one.passed for one in folds.checks] == [True]

    def test_the_search_was_given_no_patient_that_is_held_out(self, ended: Ended) -> None:
        (given,) = ended.records["search"].inputs
        held_out = set(numbers(output(ended.records["folds"], "held_out"), 2)[0])
        assert given.sha256 == next(one.sha256 for one in ended.records["folds"].outputs if one.name == "searched")
        assert not held_out & set(numbers(output(ended.records["folds"], "searched"), 3)[0])

    def test_lines_are_as_good_as_other_arithmetic_says(self, ended: Ended) -> None:
        patients = output(ended.records["folds"], "searched")
        _, outcomes, measured = numbers(patients, 3)
        folds = np.array([int(one["fold"]) for one in rows(patients)])
        lines = [one for one in rows(output(ended.records["search"], "trials")) if one["kind"] == LINE]
        assert 3 <= len(lines) < TRIALS
        for trial in lines:
            losses, areas = [], []
            for fold in range(5):
                learn, test = folds != fold, folds == fold
                said = straight_line(measured[learn], outcomes[learn], float(trial["penalty"]), measured[test])
                losses.append(loss(outcomes[test], said))
                areas.append(area(outcomes[test], said))
            assert float(trial["log_loss"]) == pytest.approx(np.mean(losses), rel=1e-6), trial
            assert float(trial["log_loss_spread"]) == pytest.approx(np.std(losses), rel=1e-6), trial
            assert float(trial["auc"]) == pytest.approx(np.mean(areas), abs=1e-6), trial

    def test_trees_have_learned(self, ended: Ended) -> None:
        trees = [one for one in rows(output(ended.records["search"], "trials")) if one["kind"] != LINE]
        assert len(trees) >= 3 and len({one["depth"] for one in trees}) > 1
        assert all(float(one["auc"]) > 0.97 and float(one["log_loss"]) < SHARE_ALONE / 2 for one in trees)

    def test_the_card_is_of_the_best_and_says_what_held_out_patients_say(self, ended: Ended) -> None:
        folds, search, card = (ended.records[name] for name in ("folds", "search", "card"))
        summary = json.loads(output(card, "summary").read_text())
        best = min(rows(output(search, "trials")), key=lambda one: float(one["log_loss"]))
        assert str(summary["model"]["trial"]) == best["trial"] and summary["model"]["kind"] == best["kind"] == LINE
        _, learned_from, seen = numbers(output(folds, "searched"), 3)
        patients, outcomes, unseen = numbers(output(folds, "held_out"), 2)
        predicted = rows(output(card, "predictions"))
        said = np.array([float(one["probability"]) for one in predicted])
        assert [int(one["patient"]) for one in predicted] == list(patients)
        assert np.abs(said - straight_line(seen, learned_from, float(best["penalty"]), unseen)).max() < 1e-6
        held_out = summary["held_out"]
        assert held_out["auc"] == pytest.approx(area(outcomes, said), abs=1e-6)
        assert held_out["log_loss"] == pytest.approx(loss(outcomes, said), abs=1e-5)
        assert held_out["brier"] == pytest.approx(np.mean((outcomes - said) ** 2), abs=1e-6)
        assert held_out["accuracy"] == pytest.approx(np.mean((said > 0.5) == outcomes), abs=1e-6)
        assert held_out["sensitivity"] == pytest.approx(np.mean(said[outcomes == 1] > 0.5), abs=1e-6)
        assert held_out["specificity"] == pytest.approx(np.mean(said[outcomes == 0] <= 0.5), abs=1e-6)
        assert held_out["log_loss_of_share"] == pytest.approx(SHARE_ALONE, abs=0.001)
        # Hanley and McNeil's formula for the standard error of an area
        auc, ill, well = held_out["auc"], 53, 89
        q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
        error = math.sqrt((auc * (1 - auc) + (ill - 1) * (q1 - auc**2) + (well - 1) * (q2 - auc**2)) / ill / well)
        assert held_out["auc_low"] < auc < held_out["auc_high"] <= 1
        assert 0.5 < (held_out["auc_high"] - held_out["auc_low"]) / (2 * 1.96 * error) < 2

    def test_the_card_needs_no_other_file(self, ended: Ended) -> None:
        card = ended.records["card"]
        text = output(card, "card").read_text()
        assert re.findall(r'(?:src|href)="(.{21})', text) == ["data:image/png;base64"]
        summary = json.loads(output(card, "summary").read_text())["held_out"]
        assert f"{summary['auc']:.4f} ({summary['auc_low']:.4f} to {summary['auc_high']:.4f})" in text
        assert "were not in the sandbox in which it ran" in text
        assert output(card, "picture").read_bytes().startswith(b"\x89PNG")
        assert {one.name for one in card.checks} == {"holds_on_unseen", "calibrated"}


@pytest.mark.slow
def test_through_dagster(forge: Forge, ended: Ended, tmp_path: Path) -> None:
    """Two trials of lines alone: their settings are those that the same trials have in the longer search."""
    config = tmp_path / "two.yaml"
    config.write_text(f"ops: {{run_{NAME}__search: {{config: {{params: {{trials: 2, kind: {LINE}}}}}}}}}\n")
    before = forge.executions()
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "job", "execute", "-m", "forge_orchestration.definitions", "-j", NAME, "-c", str(config)],
        cwd=REPOSITORY, env={**os.environ, "FORGE_HOME": str(forge.home)}, capture_output=True, text=True, timeout=RUN_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    made = {record.analysis: record for record in map(forge.read_record, forge.executions() - before)}
    assert sorted(made) == sorted(STAGES) and made[STAGES[0]].cache.hit and not made[STAGES[1]].cache.hit
    longer = [one for one in rows(output(ended.records["search"], "trials")) if one["kind"] == LINE and int(one["trial"]) <= 2]
    assert (
        longer == [one for one in rows(output(made[STAGES[1]], "trials")) if one["trial"] in {it["trial"] for it in longer}] != []
    )
    assert in_table(forge, f"SELECT trial FROM tumour_trials WHERE execution_id = '{made[STAGES[1]].execution_id}' ORDER BY trial") == [
        (1,), (2,),
    ]  # fmt: skip


class TestOneOwnTable:
    """A part of the real one, with names in its first line."""

    @pytest.fixture
    def table(self, forge: Forge, ended: Ended, tmp_path: Path) -> Path:
        path = tmp_path / "mine.csv"
        lines = output(ended.records["folds"], "held_out").read_text().splitlines()
        path.write_text("\n".join(",".join(line.split(",")[1:5]) for line in lines).replace("outcome", "ill", 1) + "\n")
        return path

    def folds(self, forge: Forge, table: Path) -> subprocess.CompletedProcess[str]:
        return forge("run", "--json", f"{NAME}.folds", "--input", f"table={table}", "--param", "outcome=ill", timeout=RUN_S)

    def test_it_is_parted_likewise_and_a_row_that_is_there_twice_is_told(self, forge: Forge, table: Path) -> None:
        table.write_text(table.read_text() + table.read_text().splitlines()[-1] + "\n")
        record = record_from_json(self.folds(forge, table).stdout)
        assert record.succeeded and record.metadata["patients"] == 143
        assert record.metadata["held out"] == pytest.approx(143 / 4, abs=1)
        assert [(one.name, one.passed, one.message[:6]) for one in record.checks] == [("no_patient_twice", False, "1 rows")]

    def test_a_measurement_that_is_missing_is_a_sentence(self, forge: Forge, table: Path) -> None:
        lines = table.read_text().splitlines()
        lines[3] = lines[3].rpartition(",")[0] + ","
        table.write_text("\n".join(lines) + "\n")
        record = record_from_json(self.folds(forge, table).stdout)
        assert (
            not record.succeeded
            and "'mean perimeter' holds something that is not a finite number" in Path(record.folder, "stderr.log").read_text()
        )
