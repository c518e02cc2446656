"""Show that this runtime works: every library is loaded and used, on problems whose answers are known."""

import os
import tempfile
from pathlib import Path


def expect(condition: bool, otherwise: str) -> None:
    """Raise where a check fails; unlike ``assert`` also under ``python -O``."""
    if not condition:
        raise RuntimeError(otherwise)


def check(scratch: Path) -> str:
    """Return a sentence on what was checked; any error is the failure."""
    os.environ["MPLCONFIGDIR"] = str(scratch / "matplotlib")
    import matplotlib

    matplotlib.use("agg")
    import numpy as np
    import pandas as pd
    import xgboost
    from matplotlib import pyplot
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    numbers = np.linspace(0, 1, 200)
    table = pd.DataFrame({"x": numbers, "y": np.where(numbers > 0.5, 1, 0)})
    boosted = xgboost.XGBClassifier(n_estimators=5, max_depth=2, n_jobs=1).fit(table[["x"]], table["y"])
    expect(bool((boosted.predict(table[["x"]]) == table["y"]).all()), "a boosted tree does not find a step")
    features, kinds = load_iris(return_X_y=True)
    score = LogisticRegression(max_iter=1000).fit(features, kinds).score(features, kinds)
    expect(score > 0.95, f"irises are told apart in {score:.0%} of cases only")
    table.to_parquet(scratch / "table.parquet")
    expect(pd.read_parquet(scratch / "table.parquet").equals(table), "a Parquet file changes on its way")
    pyplot.plot(numbers)
    pyplot.savefig(scratch / "line.png")
    expect((scratch / "line.png").stat().st_size > 1000, "the picture is empty")
    return f"a step is found by boosting, irises are told apart in {score:.0%}, a picture is drawn"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(check(Path(folder)))
