"""The report: one HTML file with its picture in it, and the numbers of all stages in one JSON file.

A plain script: it reads the tables and numbers of the other stages in ``$FORGE_INPUTS`` and writes to ``$FORGE_OUTPUTS``.
"""

from __future__ import annotations

import base64
import json
import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COLOURS = ["#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#777777"]
"""Paul Tol's muted colours, which the colour-blind can tell apart as well."""
GENES_SHOWN = 4
"""Of each cluster, in the picture and in the table."""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
  img {{ max-width: 100%; }}
  table {{ border-collapse: collapse; margin: 1rem 0; }}
  th, td {{ text-align: left; padding: 0.2rem 1.2rem 0.2rem 0; border-bottom: 1px solid #ccc; vertical-align: top; }}
</style>
<h1>{title}</h1>
<p>{lead}</p>
<img alt="Quality of all cells, clusters in the UMAP plane, and marker genes by cluster" src="data:image/png;base64,{picture}">
<h2>Clusters</h2>
{clusters}
<p>Marker genes are the most significant first. In brackets is the area under the curve: the chance that a cell of the cluster expresses the gene more
than another cell does (0.5: no difference). Ten other seeds agree with these clusters to an adjusted Rand index of {agreement:.2f} (1: the same, 0: as by chance).</p>
<h2>Quality control</h2>
{quality}
<h2>Parameters</h2>
{parameters}
</html>
"""


def say(**message: object) -> None:
    """Tell whoever watches."""
    with open(os.environ["FORGE_MESSAGES"], "a") as file:
        file.write(json.dumps(message) + "\n")


def html_table(header: list[str], rows: list[list[object]]) -> str:
    """Whatever the cells hold, it is text."""
    lines = ["".join(f"<th>{escape(str(cell))}</th>" for cell in header)]
    lines += ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"


def draw_quality(axes: Axes, quality: pd.DataFrame, bounds: dict[str, tuple[float, float]]) -> None:
    """Counts and genes of all cells, those that were dropped in another colour, and the bounds."""
    from matplotlib.ticker import LogLocator, NullFormatter

    dropped = quality["dropped"] != ""
    axes.scatter(
        *quality.loc[~dropped, ["counts", "genes"]].to_numpy().T,
        s=8,
        color="#44AA99",
        linewidths=0,
        label=f"kept ({(~dropped).sum()})",
    )
    axes.scatter(
        *quality.loc[dropped, ["counts", "genes"]].to_numpy().T,
        s=16,
        color="#882255",
        marker="x",
        label=f"dropped ({dropped.sum()})",
    )
    for bound in bounds["counts"]:
        axes.axvline(bound, color="#777777", linestyle=":", linewidth=1)
    for bound in bounds["genes"]:
        axes.axhline(bound, color="#777777", linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="counts of a cell", ylabel="genes detected", title="Quality control")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False)


def draw_clusters(axes: Axes, clusters: pd.DataFrame, names: list[int]) -> None:
    """The cells in the UMAP plane, each cluster with its number."""
    for name in names:
        here = clusters.loc[clusters["cluster"] == name, ["umap_1", "umap_2"]].to_numpy()
        axes.scatter(*here.T, s=8, color=COLOURS[name % len(COLOURS)], linewidths=0)
    for name in names:
        middle = clusters.loc[clusters["cluster"] == name, ["umap_1", "umap_2"]].median()
        axes.annotate(
            str(name),
            middle,
            ha="center",
            va="center",
            weight="bold",
            bbox={"boxstyle": "circle", "facecolor": "white", "alpha": 0.8},
        )
    # no unit and no meaning of great distances: no ticks
    axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=f"{len(names)} clusters of {len(clusters)} cells")


def draw_markers(axes: Axes, expression: pd.DataFrame, genes: list[str], names: list[int]) -> None:
    """A dot a gene and cluster: its size the share of cells with the gene, its colour the mean, from 0 to the gene's largest."""
    import numpy as np

    of_gene = expression.pivot(index="gene", columns="cluster").loc[genes]
    means = of_gene["mean"][names].to_numpy()
    x, y = np.meshgrid(range(len(names)), range(len(genes)))
    axes.scatter(
        x.ravel(), y.ravel(), s=160 * of_gene["fraction"][names].to_numpy().ravel(), cmap="viridis_r", edgecolors="#777777", linewidths=0.3,
        c=(means / means.max(axis=1, keepdims=True)).ravel(),
    )  # fmt: skip
    axes.set(xticks=range(len(names)), xticklabels=names, yticks=range(len(genes)), yticklabels=genes, xlabel="cluster")
    axes.set(title="Markers (size: share of cells, dark: mean)", xlim=(-0.6, len(names) - 0.4), ylim=(len(genes) - 0.4, -0.6))


def draw(
    quality: pd.DataFrame,
    bounds: dict[str, tuple[float, float]],
    clusters: pd.DataFrame,
    expression: pd.DataFrame,
    genes: list[str],
    path: Path,
) -> None:
    """The three beside one another."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = sorted(clusters["cluster"].unique().tolist())
    figure, panels = pyplot.subplots(1, 3, figsize=(14, max(4.6, 0.26 * len(genes))), layout="constrained")
    draw_quality(panels[0], quality, bounds)
    draw_clusters(panels[1], clusters, names)
    draw_markers(panels[2], expression, genes, names)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def main() -> None:
    """Run the stage."""
    say(type="progress", fraction=0.0, message="reading what the stages have made")
    import pandas as pd

    inputs, outputs = Path(os.environ["FORGE_INPUTS"]), Path(os.environ["FORGE_OUTPUTS"])
    os.environ["MPLCONFIGDIR"] = os.environ["TMPDIR"]
    numbers: dict[str, dict[str, Any]] = {
        stage: json.loads((inputs / f"{stage}_numbers").read_text()) for stage in ("qc", "normalise", "clusters")
    }
    # a gene may be called NA
    quality, clusters, markers, expression = (
        pd.read_csv(inputs / name, keep_default_na=False) for name in ("quality", "clusters", "markers", "expression")
    )
    best = markers.groupby("cluster").head(GENES_SHOWN)

    say(type="progress", fraction=0.3, message="drawing")
    bounds = {name: tuple(pair) for name, pair in numbers["qc"]["usual"].items()}
    bounds["genes"] = (max(bounds["genes"][0], numbers["qc"]["parameters"]["min_genes"]), bounds["genes"][1])
    draw(quality, bounds, clusters, expression, list(dict.fromkeys(best["gene"])), outputs / "overview.png")

    qc, found = numbers["qc"], numbers["clusters"]
    by_cluster = [
        {"cluster": name, "cells": size, "markers": dict(best.loc[best["cluster"] == name, ["gene", "auc"]].to_numpy().tolist())}
        for name, size in enumerate(found["cells_of_each"])
    ]
    summary = {**numbers, "by_cluster": by_cluster}
    (outputs / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    rows = [
        [
            one["cluster"],
            one["cells"],
            f"{one['cells'] / len(clusters):.0%}",
            ", ".join(f"{gene} ({auc:.2f})" for gene, auc in one["markers"].items()),
        ]
        for one in by_cluster
    ]
    kept_between = {name: f"{low:g} and {high:g}" for name, (low, high) in bounds.items()}
    page = PAGE.format(
        title=f"{found['clusters']} clusters of {qc['cells_kept']} cells",
        lead=f"{qc['cells_kept']} of {qc['cells']} cells and {qc['genes_kept']} of {qc['genes']} genes were kept; a cell has {qc['median_counts']:g} counts of "
        f"{qc['median_genes']:g} genes in the median. The clusters are based on {numbers['normalise']['genes_used']} genes.",
        picture=base64.b64encode((outputs / "overview.png").read_bytes()).decode(),
        clusters=html_table(["cluster", "cells", "share", "marker genes"], rows),
        agreement=found["agreement_of_seeds"],
        quality=html_table(
            ["what", "cells"], [[f"dropped: {name}", count] for name, count in qc["dropped"].items()] + [["kept", qc["cells_kept"]]]
        )
        + f"<p>A cell may be dropped for several reasons. Those with between {kept_between['counts']} counts and {kept_between['genes']} genes are kept. "
        f"Mitochondrial genes among those counted: {qc['mitochondrial_genes']}.</p>",
        parameters=html_table(
            ["stage", "parameter", "value"], [[stage, name, value] for stage, of in numbers.items() for name, value in of["parameters"].items()]
        ),
    )  # fmt: skip
    (outputs / "report.html").write_text(page, encoding="utf-8")
    say(type="metadata", values={"cells": qc["cells_kept"], "clusters": found["clusters"], "report_bytes": len(page)})
    say(type="progress", fraction=1.0, message="done")


if __name__ == "__main__":
    main()
