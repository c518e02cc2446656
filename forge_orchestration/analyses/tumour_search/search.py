"""Try settings of models, one trial after the other, each judged on all folds; what was tried is not tried again.

The settings of trial k depend on the seed, the bounds and k, not on the trials before it: a search that was stopped and went on
has tried the same as one that was not.

A plain script: it reads ``$FORGE_INPUTS/patients`` (CSV: number, outcome, fold, measurements), the parameters at ``$FORGE_PARAMS`` and
``$FORGE_SEED``, keeps each finished trial in ``$FORGE_CHECKPOINT``, and writes to ``$FORGE_OUTPUTS``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import forge_checkpoint
import numpy as np
import pandas as pd
from models import LINE, SETTINGS, TREES, model
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

COLUMNS = ["trial", "seed", "kind", *SETTINGS[TREES], *SETTINGS[LINE], "log_loss", "log_loss_spread", "auc", "brier"]
METRICS = {"log_loss": log_loss, "auc": roc_auc_score, "brier": brier_score_loss}
LEARNING_RATES, PENALTIES = (0.01, 0.3), (1e-3, 1e3)
SETTLED = 0.95


def say(**message: object) -> None:
    """Tell whoever watches."""
    with open(os.environ["FORGE_MESSAGES"], "a") as file:
        file.write(json.dumps(message) + "\n")


def drawn(trial: int, seed: int, params: dict[str, Any]) -> dict[str, Any]:
    """The settings of one trial."""
    random = np.random.default_rng([seed, trial])

    def between(low: float, high: float) -> float:  # four digits, so that the table has what was used and nothing less
        return float(f"{np.exp(random.uniform(np.log(low), np.log(high))):.4g}")

    either = str(random.choice([TREES, LINE]))
    kind = either if params["kind"] == "both" else params["kind"]
    if kind == LINE:
        return {"trial": trial, "kind": kind, "penalty": between(*PENALTIES)}
    return {
        "trial": trial, "kind": kind, "trees": int(random.integers(20, params["max_trees"] + 1)),
        "depth": int(random.integers(1, params["max_depth"] + 1)), "learning_rate": between(*LEARNING_RATES),
        "rows_share": round(random.uniform(0.5, 1), 4), "columns_share": round(random.uniform(0.3, 1), 4),
    }  # fmt: skip


def judged(trial: dict[str, Any], measurements: np.ndarray, outcomes: np.ndarray, folds: np.ndarray) -> dict[str, float]:
    """Means over the folds of each metric, and the standard deviation of the log loss."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for fold in np.unique(folds):
        learn, test = folds != fold, folds == fold
        probabilities = model(trial).fit(measurements[learn], outcomes[learn]).predict_proba(measurements[test])[:, 1]
        for name, metric in METRICS.items():
            found[name].append(float(metric(outcomes[test], probabilities)))
    return {name: float(np.mean(values)) for name, values in found.items()} | {"log_loss_spread": float(np.std(found["log_loss"]))}


def main() -> None:
    """Run the stage."""
    params = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())
    seed, trials = int(os.environ["FORGE_SEED"]), params["trials"]
    table = pd.read_csv(Path(os.environ["FORGE_INPUTS"], "patients"), float_precision="round_trip")
    outcomes, folds = table["outcome"].to_numpy(), table["fold"].to_numpy()
    measurements = table.iloc[:, 3:].to_numpy(float)

    with forge_checkpoint.open() as checkpoint:
        rows: list[dict[str, Any]] = checkpoint.state or []
        if rows:
            say(type="log", message=f"goes on after trial {len(rows)} of {trials}")
        for number in checkpoint.remaining(range(1, trials + 1)):
            trial = drawn(number, seed, params)
            rows.append(trial | {"seed": seed} | judged(trial, measurements, outcomes, folds))
            checkpoint.save(rows)
            best = min(row["log_loss"] for row in rows)
            text = f"trial {number} of {trials}: {trial['kind']}, log loss {rows[-1]['log_loss']:.4f}, best {best:.4f}"
            say(type="progress", fraction=number / trials, message=text)
            print(text)

    losses = [row["log_loss"] for row in rows]
    halfway = min(losses[: (trials + 1) // 2])
    say(
        type="check", name="settled", passed=min(losses) >= SETTLED * halfway, level="warning",
        message=f"best log loss {halfway:.4f} after the first half, {min(losses):.4f} at the end; with more trials it may be less",
    )  # fmt: skip
    say(
        type="metadata", values={"trials": trials, "best trial": int(np.argmin(losses)) + 1, "best log loss": round(min(losses), 5)}
    )
    # in full digits: the card takes the best from here
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS).astype({"trees": "Int64", "depth": "Int64"})
    frame.to_csv(Path(os.environ["FORGE_OUTPUTS"], "trials.csv"), index=False)


if __name__ == "__main__":
    main()
