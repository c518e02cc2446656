"""What a trial is: settings of a model, by which the search and the card make the same one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TREES, LINE = "boosted trees", "logistic regression"
SETTINGS = {TREES: ["trees", "depth", "learning_rate", "rows_share", "columns_share"], LINE: ["penalty"]}
"""What each kind of model is set by."""


def model(trial: Mapping[str, Any]) -> Any:
    """A model that has learned nothing yet; `trial` has its number, kind and settings."""
    if trial["kind"] == TREES:
        from xgboost import XGBClassifier

        return XGBClassifier(
            n_estimators=int(trial["trees"]), max_depth=int(trial["depth"]), learning_rate=trial["learning_rate"],
            subsample=trial["rows_share"], colsample_bytree=trial["columns_share"], random_state=int(trial["trial"]),
            n_jobs=1, tree_method="hist",
        )  # fmt: skip
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # to the very minimum: where a first-order solver would stop depends on its step sizes
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / trial["penalty"], solver="newton-cholesky", tol=1e-9, max_iter=1000)
    )
