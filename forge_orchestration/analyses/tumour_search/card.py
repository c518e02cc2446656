"""Learn the best model of a search anew, judge it by patients that the search did not see, and write down what it is good for.

A plain script: it reads ``searched``, ``held_out`` and ``trials`` in ``$FORGE_INPUTS`` (CSV), the parameters at ``$FORGE_PARAMS`` and
``$FORGE_SEED``, and writes to ``$FORGE_OUTPUTS``: the card is one HTML file with its picture in it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
import xgboost
from models import SETTINGS, model
from sklearn.inspection import permutation_importance
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, recall_score, roc_auc_score, roc_curve

DRAWS = 2000
REPEATS = 20
SHOWN = 10
"""Measurements in the picture."""
GROUPS = 5
"""Of patients by their probability, in the picture of the calibration."""
COLORS = ("#44AA99", "#AA4499")


def say(**message: object) -> None:
    """Tell whoever watches."""
    with open(os.environ["FORGE_MESSAGES"], "a") as file:
        file.write(json.dumps(message) + "\n")


def interval(outcomes: np.ndarray, probabilities: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """Of the area under the curve, 95 %, by drawing as many patients of each outcome again and again."""
    ill, well = probabilities[outcomes == 1], probabilities[outcomes == 0]
    # the area is the share of pairs of which the ill one has the higher probability
    pairs = (ill[:, None] > well) + 0.5 * (ill[:, None] == well)
    areas = [
        pairs[np.ix_(random.integers(len(ill), size=len(ill)), random.integers(len(well), size=len(well)))].mean()
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def spiegelhalter(outcomes: np.ndarray, probabilities: np.ndarray) -> float:
    """The p-value of Spiegelhalter's test that probabilities are what they say."""
    lean = 1 - 2 * probabilities
    spread = np.sum(lean**2 * probabilities * (1 - probabilities))
    if spread == 0:  # all are 0, 1 or a half: they are right, or they are not
        return float(np.all(probabilities == outcomes))
    return math.erfc(abs(np.sum((outcomes - probabilities) * lean)) / math.sqrt(2 * spread))


def draw(
    outcome: str, trials: pd.DataFrame, outcomes: np.ndarray, probabilities: np.ndarray, importances: pd.DataFrame,
    measured: dict[str, float],
) -> bytes:  # fmt: skip
    """The search, the curve, the calibration and the measurements that matter, as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, ((search, curve), (calibration, bars)) = pyplot.subplots(2, 2, figsize=(9, 7.5), layout="constrained")
    for color, (kind, some) in zip(COLORS, trials.groupby("kind"), strict=False):
        search.scatter(some["trial"], some["log_loss"], s=14, color=color, label=kind)
    search.step(trials["trial"], trials["log_loss"].cummin(), where="post", color="#333333", linewidth=1, label="best so far")
    search.set(title="The search", xlabel="trial", ylabel="log loss on the folds", yscale="log")
    for axis in (search.yaxis.set_major_formatter, search.yaxis.set_minor_formatter):
        axis("{x:g}")
    search.legend(fontsize=8)

    false, true, _ = roc_curve(outcomes, probabilities)
    curve.plot(false, true, color="#332288")
    curve.plot([0, 1], [0, 1], color="#777777", linestyle=":")
    curve.text(0.35, 0.1, f"area {measured['auc']:.3f}\n({measured['auc_low']:.3f} to {measured['auc_high']:.3f})")
    curve.set(title="Held-out patients: the curve", xlabel="false alarms", ylabel="found", aspect="equal")

    for group in np.array_split(np.argsort(probabilities, kind="stable"), GROUPS):
        if len(group):
            said, was = probabilities[group].mean(), outcomes[group].mean()
            error = 1.96 * math.sqrt(max(said * (1 - said), 1e-12) / len(group))
            calibration.errorbar(said, said, yerr=error, fmt="none", color="#999999", capsize=3)
            calibration.plot(said, was, "o", color="#332288")
    calibration.plot([0, 1], [0, 1], color="#777777", linestyle=":")
    calibration.set(
        title="Held-out patients: said and seen", xlabel="mean probability", ylabel=f"share of {outcome}", aspect="equal"
    )

    shown = importances.head(SHOWN)[::-1]
    bars.barh(shown["measurement"], shown["loss"], xerr=shown["spread"], color="#88CCEE")
    bars.set(title="What matters", xlabel="log loss that shuffling it adds, held-out patients")
    bars.tick_params(axis="y", labelsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=90, metadata={"Software": None})
    return data.getvalue()


def table(rows: list[list[Any]], head: list[str]) -> str:
    """As HTML."""

    def line(cells: list[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def settings_of(trial: pd.Series) -> dict[str, Any]:
    """What the model of a trial is set by."""
    return {name: int(trial[name]) if name in ("trees", "depth") else float(trial[name]) for name in SETTINGS[trial["kind"]]}


def written(settings: dict[str, Any]) -> str:
    """For people."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in settings.items())


def page(outcome: str, summary: dict[str, Any], trials: pd.DataFrame, picture: bytes) -> str:
    """The card."""
    best, seen, measured, folds = summary["model"], summary["patients"], summary["held_out"], summary["folds"]
    of_kinds = trials.loc[trials.groupby("kind")["log_loss"].idxmin()].sort_values("log_loss")
    kinds = [
        [row["kind"], (trials["kind"] == row["kind"]).sum(), row["trial"], f"{row['log_loss']:.4f} ± {row['log_loss_spread']:.4f}",
         f"{row['auc']:.4f}", written(settings_of(row))]
        for _, row in of_kinds.iterrows()
    ]  # fmt: skip
    scores = [
        ["patients", seen["searched"], seen["held_out"]],
        [f"of whom {outcome}", seen["searched_with_outcome"], seen["held_out_with_outcome"]],
        [
            "area under the curve (AUC)",
            f"{folds['auc']:.4f}",
            f"{measured['auc']:.4f} ({measured['auc_low']:.4f} to {measured['auc_high']:.4f})",
        ],
        ["log loss", f"{folds['log_loss']:.4f}", f"{measured['log_loss']:.4f}"],
        [f"log loss of a model that knows only the share of {outcome}", "", f"{measured['log_loss_of_share']:.4f}"],
        ["Brier score", f"{folds['brier']:.4f}", f"{measured['brier']:.4f}"],
        ["accuracy at 0.5", "", f"{measured['accuracy']:.4f}"],
        ["sensitivity at 0.5", "", f"{measured['sensitivity']:.4f}"],
        ["specificity at 0.5", "", f"{measured['specificity']:.4f}"],
        ["Spiegelhalter's p", "", f"{measured['calibration_p']:.3f}"],
    ]
    encoded = base64.b64encode(picture).decode()
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Model card: {html.escape(outcome)}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem }}
th, td {{ border: 1px solid #ccc; padding: 0.25rem 0.6rem; text-align: left }}
th {{ background: #f2f2f2 }}
img {{ max-width: 100% }}
</style></head><body>
<h1>Model card: {html.escape(outcome)}</h1>
<p>A model that gives the probability of the outcome <b>{html.escape(outcome)}</b> from {seen["measurements"]} measurements. It is
<b>{html.escape(best["kind"])}</b> ({html.escape(written(best["settings"]))}), trial {best["trial"]} of {len(trials)}, seed {summary["seed"]}.</p>
<h2>How good it is</h2>
<p>Both columns are the same settings. The <b>folds</b> chose them, so what they say is a little too good: the best of many is also the luckiest. The
<b>held-out</b> patients were parted from the others before the search began and were not in the sandbox in which it ran. This
stage alone looked at them: quote that column. Whoever makes several cards and takes the one with the best second column has used these patients up.</p>
{table(scores, ["", f"folds (mean of {seen['folds']})", "held out"])}
<p>The interval is of 95 %, by {DRAWS} draws of the held-out patients. The model is not learned anew in these, so it does not say how much another search
would differ.</p>
<img alt="The search, and the curve, the calibration and the importance of measurements on held-out patients" src="data:image/png;base64,{encoded}">
<p>Calibration: held-out patients in {GROUPS} groups by their probability; the bars are where 95 % of such groups lie if the probabilities are right. What matters:
mean and standard deviation of {REPEATS} shuffles; of measurements that say the same, each looks dispensable.</p>
<h2>How it was chosen</h2>
<p>By the lowest mean log loss on the folds. The best of each kind:</p>
{table(kinds, ["kind", "trials", "best", "log loss", "area under the curve", "settings"])}
<h2>What it is not for</h2>
<p>It was judged by patients of the same table as those that it learned from. Of other hospitals, other instruments and other times it says nothing until it was judged
there. It is not a medical device.</p>
<p><small>scikit-learn {sklearn.__version__}, xgboost {xgboost.__version__}</small></p>
</body></html>
"""


def main() -> None:
    """Run the stage."""
    inputs, outputs = Path(os.environ["FORGE_INPUTS"]), Path(os.environ["FORGE_OUTPUTS"])
    os.environ["MPLCONFIGDIR"] = os.environ["TMPDIR"]
    outcome, seed = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())["outcome"], int(os.environ["FORGE_SEED"])
    random = np.random.default_rng(seed)
    searched, held_out, trials = (
        pd.read_csv(inputs / name, float_precision="round_trip") for name in ("searched", "held_out", "trials")
    )
    best = trials.loc[trials["log_loss"].idxmin()]
    say(type="progress", fraction=0.1, message=f"learning trial {best['trial']}, {best['kind']}, from {len(searched)} patients")
    measurements, outcomes = held_out.iloc[:, 2:], held_out["outcome"].to_numpy()
    fitted = model(best).fit(searched.iloc[:, 3:].to_numpy(float), searched["outcome"].to_numpy())
    probabilities = fitted.predict_proba(measurements.to_numpy(float))[:, 1].astype(float)
    share = searched["outcome"].mean()
    low, high = interval(outcomes, probabilities, random)
    measured = {
        "auc": roc_auc_score(outcomes, probabilities), "auc_low": low, "auc_high": high,
        "log_loss": log_loss(outcomes, probabilities), "log_loss_of_share": log_loss(outcomes, np.full(len(outcomes), share)),
        "brier": brier_score_loss(outcomes, probabilities), "accuracy": accuracy_score(outcomes, probabilities > 0.5),
        "sensitivity": recall_score(outcomes, probabilities > 0.5), "specificity": recall_score(1 - outcomes, probabilities <= 0.5),
        "calibration_p": spiegelhalter(outcomes, probabilities),
    }  # fmt: skip
    summary = {
        "outcome": outcome, "seed": seed, "trials": len(trials),
        "patients": {
            "searched": len(searched), "searched_with_outcome": int(searched["outcome"].sum()), "held_out": len(held_out),
            "held_out_with_outcome": int(outcomes.sum()), "folds": int(searched["fold"].nunique()), "measurements": measurements.shape[1],
        },
        "model": {"trial": int(best["trial"]), "kind": best["kind"], "settings": settings_of(best)},
        "folds": {name: round(float(best[name]), 6) for name in ("log_loss", "auc", "brier")},
        "held_out": {name: round(float(value), 6) for name, value in measured.items()},
    }  # fmt: skip
    say(
        type="check", name="holds_on_unseen", passed=bool(best["auc"] <= high),
        message=f"{best['auc']:.4f} on the folds; {measured['auc']:.4f} ({low:.4f} to {high:.4f}) on patients that the search did not see",
    )  # fmt: skip
    say(
        type="check", name="calibrated", passed=measured["calibration_p"] >= 0.05, message=f"p = {measured['calibration_p']:.3f}",
        values={"p": measured["calibration_p"]},
    )  # fmt: skip

    say(type="progress", fraction=0.4, message="shuffling measurements")
    shuffled = permutation_importance(
        fitted, measurements.to_numpy(float), outcomes, scoring="neg_log_loss", n_repeats=REPEATS,
        random_state=np.random.RandomState(np.random.MT19937(seed)),
    )  # fmt: skip
    importances = pd.DataFrame(
        {"measurement": measurements.columns, "loss": shuffled.importances_mean, "spread": shuffled.importances_std}
    ).sort_values("loss", ascending=False, kind="stable")

    picture = draw(outcome, trials, outcomes, probabilities, importances, measured)
    (outputs / "card.png").write_bytes(picture)
    (outputs / "model_card.html").write_text(page(outcome, summary, trials, picture))
    (outputs / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    predictions = pd.DataFrame({"patient": held_out["patient"], "outcome": outcomes, "probability": probabilities})
    predictions.to_csv(outputs / "predictions.csv", index=False)
    say(type="metadata", values={"kind": best["kind"], **summary["held_out"]})
    say(type="progress", fraction=1.0, message="done")
    print(json.dumps(summary["held_out"], indent=2))


if __name__ == "__main__":
    main()
