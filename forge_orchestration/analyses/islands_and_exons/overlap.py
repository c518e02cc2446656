"""Ask whether CpG islands meet exons more often than by chance.

For each island: how many exons it overlaps, and the distance to the nearest. For each chromosome: the share of islands that
meet an exon, against islands of the same lengths at random places between the first and the last feature of the chromosome.
The p-value is the share of shuffles with at least as many (one added to both, so that it is never 0).

A plain script: it reads ``$FORGE_INPUTS/islands`` and ``exons`` (BED), the parameters at ``$FORGE_PARAMS`` and ``$FORGE_SEED``,
and writes to ``$FORGE_OUTPUTS``. Two executions with the same runtime, inputs, parameters and seed write the same tables.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

COLUMNS = ["chrom", "start", "end"]
FLOATS = "%.6g"


def say(**message: object) -> None:
    """Tell whoever watches."""
    with open(os.environ["FORGE_MESSAGES"], "a") as file:
        file.write(json.dumps(message) + "\n")


def read(path: Path) -> pd.DataFrame:
    """The first three columns of a BED file, sorted."""
    import pandas as pd

    table = pd.read_csv(path, sep="\t", header=None, comment="#").iloc[:, :3]
    table.columns = pd.Index(COLUMNS)
    if table.empty or not (table["start"] < table["end"]).all():
        raise SystemExit(f"{path.name} is no BED file with intervals.")
    return table.sort_values(COLUMNS, ignore_index=True)


def meeting(islands: pd.DataFrame, exons: pd.DataFrame) -> int:
    """How many of `islands` overlap one of `exons`, on one chromosome; both sorted by start."""
    import numpy as np

    furthest = np.maximum.accumulate(exons["end"].to_numpy())
    before = np.searchsorted(exons["start"].to_numpy(), islands["end"].to_numpy(), side="left")
    return int(((before > 0) & (furthest[np.maximum(before - 1, 0)] > islands["start"].to_numpy())).sum())


def shuffled(islands: pd.DataFrame, low: int, high: int, random: np.random.Generator) -> pd.DataFrame:
    """Islands of the same lengths at random places from `low` to `high`."""
    lengths = (islands["end"] - islands["start"]).to_numpy()
    starts = random.integers(low, high - lengths)
    return islands.assign(start=starts, end=starts + lengths)


def enrichment(islands: pd.DataFrame, exons: pd.DataFrame, shuffles: int, random: np.random.Generator) -> pd.DataFrame:
    """A row a chromosome."""
    import numpy as np
    import pandas as pd

    rows = []
    for chrom, here in islands.groupby("chrom"):
        near = exons[exons["chrom"] == chrom]
        if near.empty:
            continue
        low, high = int(min(here["start"].min(), near["start"].min())), int(max(here["end"].max(), near["end"].max()))
        found = meeting(here, near)
        by_chance = np.array([meeting(shuffled(here, low, high, random), near) for _ in range(shuffles)])
        rows.append(
            {
                "chrom": chrom, "islands": len(here), "exons": len(near), "meet_an_exon": found,
                "expected": float(by_chance.mean()), "fold": float(found / max(by_chance.mean(), 1 / shuffles)),
                "p_value": float((1 + (by_chance >= found).sum()) / (1 + shuffles)),
            }
        )  # fmt: skip
        say(type="progress", fraction=0.2 + 0.6 * len(rows) / islands["chrom"].nunique(), message=f"shuffled {chrom}")
    return pd.DataFrame(rows)


def draw(distances: pd.Series, path: Path) -> None:
    """A histogram of the distances that are not 0, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("agg")
    import numpy as np
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    apart = distances[distances > 0]
    axes.hist(apart, bins=np.logspace(0, np.log10(max(apart.max(), 10)), 40).tolist(), color="#44AA99")
    axes.set(
        xscale="log",
        xlabel="bases to the nearest exon",
        ylabel="CpG islands",
        title=f"{(distances == 0).sum()} islands meet an exon",
    )
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    """Run the analysis."""
    say(type="progress", fraction=0.0, message="loading bioframe")
    import bioframe
    import numpy as np

    inputs, outputs = Path(os.environ["FORGE_INPUTS"]), Path(os.environ["FORGE_OUTPUTS"])
    os.environ["MPLCONFIGDIR"] = os.environ["TMPDIR"]
    shuffles = int(json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())["shuffles"])
    islands, exons = read(inputs / "islands"), read(inputs / "exons")
    say(type="progress", fraction=0.2, message=f"{len(islands)} islands, {len(exons)} exons")
    nearest = bioframe.closest(islands, exons).drop_duplicates(COLUMNS)
    table = bioframe.count_overlaps(islands, exons).rename(columns={"count": "exons"})
    table = table.merge(nearest[[*COLUMNS, "distance"]], on=COLUMNS, how="left")
    table.to_csv(outputs / "overlaps.csv", index=False)
    rows = enrichment(islands, exons, shuffles, np.random.default_rng(int(os.environ["FORGE_SEED"])))
    rows.to_csv(outputs / "enrichment.csv", index=False, float_format=FLOATS)
    draw(table["distance"].dropna(), outputs / "distances.png")
    summary = {
        "islands": len(islands), "exons": len(exons), "islands_that_meet_an_exon": int((table["exons"] > 0).sum()),
        "fold_by_chromosome": {row.chrom: round(row.fold, 3) for row in rows.itertuples()},
    }  # fmt: skip
    (outputs / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    say(type="metadata", values={"islands_that_meet_an_exon": summary["islands_that_meet_an_exon"], **{f"fold_{k}": v for k, v in summary["fold_by_chromosome"].items()}})  # fmt: skip
    say(type="progress", fraction=1.0, message="done")
    print(rows.to_string(index=False))


if __name__ == "__main__":
    main()
