"""Part the patients of a table into those that a search may see, cut into folds, and those by whom its best model is judged.

Each part has the same share of each outcome, to within one patient.

A plain script: it reads ``$FORGE_INPUTS/table`` (the Wisconsin table as scikit-learn ships it, or a CSV with the names of its columns
in the first line), the parameters at ``$FORGE_PARAMS`` and ``$FORGE_SEED``, and writes to ``$FORGE_OUTPUTS``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

OWN = ("patient", "outcome", "fold")


def say(**message: object) -> None:
    """Tell whoever watches."""
    with open(os.environ["FORGE_MESSAGES"], "a") as file:
        file.write(json.dumps(message) + "\n")


def read(path: Path, outcome: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Measurements (a row a patient), and each patient's outcome, 0 or 1."""
    with open(path) as file:
        first = file.readline().rstrip("\n").split(",")
    if first[2:] == ["malignant", "benign"]:  # scikit-learn's own: it has no names of columns, and calls benign 1
        from sklearn.datasets import load_breast_cancer

        names = [*load_breast_cancer().feature_names, "benign"]
        table = pd.read_csv(path, skiprows=1, header=None, names=names, float_precision="round_trip")
        table["malignant"] = 1 - table.pop("benign")
    else:
        table = pd.read_csv(path, float_precision="round_trip")
    if outcome not in table:
        raise SystemExit(f"The table has no column '{outcome}'. Its columns: {', '.join(map(str, table.columns[:50]))}.")
    outcomes = table.pop(outcome)
    if set(outcomes) != {0, 1}:
        raise SystemExit(f"The column '{outcome}' must hold 0 and 1, both of them and nothing else.")
    for name, column in table.items():
        if name in OWN:
            raise SystemExit(f"A column cannot be called '{name}' here: leave it out, or give it another name.")
        if not pd.api.types.is_numeric_dtype(column) or not np.isfinite(column.astype(float)).all():
            raise SystemExit(f"The column '{name}' holds something that is not a finite number: correct it, or leave it out.")
    return table, outcomes.to_numpy(int)


def held_out(outcomes: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Numbers of the patients that are held out, ascending: the same share of each outcome."""
    parts = []
    for outcome in (0, 1):
        patients = random.permutation(np.flatnonzero(outcomes == outcome))
        parts.append(patients[: round(share * len(patients))])
    return np.sort(np.concatenate(parts))


def dealt(outcomes: np.ndarray, folds: int, random: np.random.Generator) -> np.ndarray:
    """The fold of each patient: shuffled, put in the order of their outcomes, and dealt like cards."""
    order = random.permutation(len(outcomes))
    order = order[np.argsort(outcomes[order], kind="stable")]
    found = np.empty(len(outcomes), int)
    found[order] = np.arange(len(outcomes)) % folds
    return found


def main() -> None:
    """Run the stage."""
    params = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())
    outputs = Path(os.environ["FORGE_OUTPUTS"])
    random = np.random.default_rng(int(os.environ["FORGE_SEED"]))
    measurements, outcomes = read(Path(os.environ["FORGE_INPUTS"], "table"), params["outcome"])
    say(type="progress", fraction=0.5, message=f"{len(outcomes)} patients, {measurements.shape[1]} measurements of each")
    twice = int(measurements.duplicated().sum())
    say(type="check", name="no_patient_twice", passed=twice == 0, message=f"{twice} rows have the measurements of an earlier one")

    kept = held_out(outcomes, params["held_out"], random)
    searched = np.setdiff1d(np.arange(len(outcomes)), kept)
    fewest = min(np.bincount(outcomes[searched], minlength=2))
    if fewest < params["folds"] or min(np.bincount(outcomes[kept], minlength=2)) == 0:
        raise SystemExit(
            f"There are too few patients of one outcome for {params['folds']} folds and a held-out share of {params['held_out']}."
        )
    table = pd.concat([pd.DataFrame({"patient": np.arange(len(outcomes)), "outcome": outcomes}), measurements], axis=1)
    table.iloc[kept].to_csv(outputs / "held_out.csv", index=False)
    seen = table.iloc[searched].copy()
    seen.insert(2, "fold", dealt(outcomes[searched], params["folds"], random))
    seen.to_csv(outputs / "searched.csv", index=False)
    say(type="metadata", values={"patients": len(outcomes), params["outcome"]: int(outcomes.sum()), "held out": len(kept)})
    say(type="progress", fraction=1.0, message="done")
    print(f"{len(searched)} patients in {params['folds']} folds for the search, {len(kept)} held out")


if __name__ == "__main__":
    main()
