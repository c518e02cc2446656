"""Tell malignant from benign tumours by measurements of their cells' nuclei, with two models, each judged on unseen patients.

Boosted trees (xgboost) are compared with a logistic regression on the same folds: on a table of this size a straight line is hard
to beat, and a more complicated model that does not should not be used.

A plain script: it reads ``$FORGE_INPUTS/table`` (the Wisconsin table as scikit-learn ships it; its first line holds the numbers of
rows and columns and the names of the classes), the parameters at ``$FORGE_PARAMS`` and ``$FORGE_SEED``, and writes to
``$FORGE_OUTPUTS``. Two executions with the same runtime, input, parameters, seed and threads write the same tables.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FLOATS = "%.6g"
BENIGN = 1
"""The class that the table calls 1."""


def say(**message: object) -> None:
    """Tell whoever watches."""
    with open(os.environ["FORGE_MESSAGES"], "a") as file:
        file.write(json.dumps(message) + "\n")


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Measurements (patients, columns), and whether each patient's tumour is malignant."""
    import numpy as np

    with open(path) as file:
        rows, columns, *names = file.readline().strip().split(",")
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    if table.shape != (int(rows), int(columns) + 1) or names != ["malignant", "benign"]:
        raise SystemExit(f"{path.name} is not the table that its first line announces.")
    return table[:, :-1], table[:, -1] != BENIGN


def models(params: dict[str, Any], seed: int, threads: int) -> dict[str, Any]:
    """The models by name, none of which has learned anything yet."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from xgboost import XGBClassifier

    return {
        "boosted trees": XGBClassifier(
            n_estimators=params["trees"], max_depth=params["depth"], learning_rate=params["learning_rate"], random_state=seed,
            n_jobs=threads, tree_method="hist",
        ),
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
    }  # fmt: skip


def cross_validated(features: np.ndarray, malignant: np.ndarray, params: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions (a row a patient, a column a model) and metrics (a row a model and fold)."""
    import pandas as pd
    from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    seed, threads = int(os.environ["FORGE_SEED"]), int(os.environ["FORGE_THREADS"])
    folds = StratifiedKFold(params["folds"], shuffle=True, random_state=seed)
    predictions = pd.DataFrame({"malignant": malignant.astype(int), "fold": -1})
    metrics = []
    for fold, (learn, test) in enumerate(folds.split(features, malignant)):
        predictions.loc[test, "fold"] = fold
        for name, model in models(params, seed, threads).items():
            probability = model.fit(features[learn], malignant[learn]).predict_proba(features[test])[:, 1]
            predictions.loc[test, name] = probability
            metrics.append(
                {
                    "model": name, "fold": fold, "patients": len(test), "auc": roc_auc_score(malignant[test], probability),
                    "accuracy": accuracy_score(malignant[test], probability > 0.5), "brier": brier_score_loss(malignant[test], probability),
                }
            )  # fmt: skip
        say(type="progress", fraction=0.1 + 0.8 * (fold + 1) / params["folds"], message=f"fold {fold + 1} of {params['folds']}")
    return predictions, pd.DataFrame(metrics)


def draw(predictions: pd.DataFrame, path: Path) -> None:
    """Receiver operating curves of all models."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from sklearn.metrics import RocCurveDisplay

    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    for name in predictions.columns[2:]:
        RocCurveDisplay.from_predictions(predictions["malignant"], predictions[name], name=name, ax=axes)
    axes.plot([0, 1], [0, 1], color="#777777", linestyle=":")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    """Run the analysis."""
    say(type="progress", fraction=0.0, message="loading scikit-learn and xgboost")
    outputs = Path(os.environ["FORGE_OUTPUTS"])
    os.environ["MPLCONFIGDIR"] = os.environ["TMPDIR"]
    params = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())
    features, malignant = read(Path(os.environ["FORGE_INPUTS"], "table"))
    predictions, metrics = cross_validated(features, malignant, params)
    predictions.to_csv(outputs / "predictions.csv", index_label="patient", float_format=FLOATS)
    metrics.to_csv(outputs / "metrics.csv", index=False, float_format=FLOATS)
    draw(predictions, outputs / "roc.png")
    means = metrics.groupby("model")[["auc", "accuracy", "brier"]].mean()
    summary = {
        "patients": len(malignant), "malignant": int(malignant.sum()),
        "models": {name: {key: round(float(value), 4) for key, value in row.items()} for name, row in means.iterrows()},
    }  # fmt: skip
    (outputs / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    say(type="metadata", values={f"auc of {name}": round(float(row["auc"]), 4) for name, row in means.iterrows()})
    say(type="progress", fraction=1.0, message="done")
    print(means.to_string(float_format=lambda value: f"{value:.4f}"))


if __name__ == "__main__":
    main()
