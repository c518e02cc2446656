"""Cluster blood cells and find the genes that mark each cluster.

Starts from log-normalised expression and the quality columns published with it, since the reduced PBMC 68k data set has
no raw counts: quality filter, highly variable genes, scaling, principal components, neighbour graph, Leiden clusters,
UMAP, and marker genes by a Wilcoxon rank-sum test. The clusters are compared with the published cell types, which come
from a different method (correlation with sorted bulk populations) and are a reference, not the truth.

The p-values rank genes. They are not evidence that the clusters exist, which were found in the same data.

A plain script: it reads ``$FORGE_INPUTS/cells``, the parameters at ``$FORGE_PARAMS`` and ``$FORGE_SEED``, and writes to
``$FORGE_OUTPUTS``. Two executions with the same runtime, input, parameters, seed and number of threads on the same kind
of processor write the same bytes to every table: no time, path or host name goes into them, and floats have six digits.

The large libraries are imported inside functions: loading them takes seconds, and whoever watches should see a first
message, or read about a wrong parameter, before that.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import warnings
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import anndata
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

LABELS = "bulk_labels"
"""The published cell types that the clusters are compared with."""

OTHER_LABELS = "louvain"
"""Published clusters, compared as well where the data set has them."""

QUALITY = ("n_genes", "n_counts", "percent_mito")
"""Published quality columns; ``percent_mito`` is a fraction in spite of its name."""

MIN_CELLS = 50
"""With fewer cells neither the graph nor the rank-sum test says anything."""

FLOATS = "%.6g"

MUTED = ["#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#777777"]
"""Paul Tol's muted colours, which the colour-blind can tell apart as well."""

MAX_LEGEND = 22
"""More lines do not fit beside the picture; the tables name every cluster."""

LIBRARIES = ("scanpy", "anndata", "numpy", "scipy", "pandas", "scikit-learn", "igraph", "umap-learn", "numba")


class AnalysisError(Exception):
    """The input or a parameter is not what this analysis needs; the message is one sentence for a scientist."""


class Messages:
    """Sends progress as JSON lines to ``$FORGE_MESSAGES``; does nothing where that is unset.

    Every line is one ``write`` of less than 4096 bytes, which a FIFO takes whole. A reader that went away costs the
    progress display and not the result: the first error is told on stderr and nothing is sent after it.
    """

    MAX_TEXT = 1000

    def __init__(self, path: str | None) -> None:
        self._descriptor: int | None = None
        if path:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Messages:
        self._send({"type": "opened"})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Also after an error: an analysis that failed with a sentence has ended in order.
        self._send({"type": "closed"})
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def progress(self, fraction: float, message: str) -> None:
        print(f"[{fraction:4.0%}] {message}", flush=True)
        self._send({"type": "progress", "fraction": round(fraction, 3), "message": message[: self.MAX_TEXT]})

    def log(self, message: str, level: str = "info") -> None:
        print(message, file=sys.stderr if level == "error" else sys.stdout, flush=True)
        self._send({"type": "log", "level": level, "message": message[: self.MAX_TEXT]})

    def metadata(self, values: dict[str, int | float | str]) -> None:
        self._send({"type": "metadata", "values": values})

    def _send(self, message: dict[str, Any]) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")
        except OSError as error:
            print(f"No progress is sent from here on: {error}", file=sys.stderr, flush=True)
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True)
class Parameters:
    """What ``analysis.yaml`` declares, which is also where the defaults and the allowed ranges are."""

    min_genes: int
    max_genes: int
    max_mito_fraction: float
    n_top_genes: int
    n_pcs: int
    n_neighbors: int
    resolution: float
    min_dist: float
    n_markers: int

    @classmethod
    def read(cls, path: Path) -> Parameters:
        """Read a JSON object with exactly these keys; whole numbers are accepted for floats, not the reverse."""
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AnalysisError(f"The parameters cannot be read as JSON: {error}.") from None
        if not isinstance(given, dict):
            raise AnalysisError("The parameters are not a JSON object.")
        kinds: dict[str, tuple[type, ...]] = {field.name: (int,) if field.type == "int" else (int, float) for field in fields(cls)}
        if missing := sorted(kinds.keys() - given.keys()):
            raise AnalysisError(f"Parameters without a value: {', '.join(missing)}.")
        if unknown := sorted(given.keys() - kinds.keys()):
            raise AnalysisError(f"Parameters that this analysis does not have: {', '.join(unknown)}.")
        for name, kind in kinds.items():
            if isinstance(given[name], bool) or not isinstance(given[name], kind):
                raise AnalysisError(f"The parameter {name} is {given[name]!r}, not a number of the declared type.")
        values: dict[str, Any] = {name: given[name] if kind == (int,) else float(given[name]) for name, kind in kinds.items()}
        return cls(**values)


def variable_path(name: str) -> Path:
    if not os.environ.get(name):
        raise AnalysisError(f"The environment variable {name} is not set.")
    return Path(os.environ[name])


def read_seed() -> int:
    text = os.environ.get("FORGE_SEED", "0")
    try:
        seed = int(text)
    except ValueError:
        raise AnalysisError(f"The seed is {text!r}, not a whole number.") from None
    if not 0 <= seed < 2**32:
        raise AnalysisError(f"The seed is {seed}; it must lie between 0 and 2^32 - 1.")
    return seed


def read_cells(path: Path) -> anndata.AnnData:
    """Read the log-normalised matrix (cells x genes, sparse) with the published columns of each cell.

    Raises:
        AnalysisError: the file is not an AnnData file, or lacks what the analysis needs.
    """
    import anndata
    import numpy as np
    from pandas.api.types import is_numeric_dtype
    from scipy import sparse

    if not path.is_file():
        raise AnalysisError(f"The input {path.name!r} is missing.")
    try:
        with warnings.catch_warnings():
            # The file is of an older layout, which anndata converts while it reads and tells about.
            warnings.filterwarnings("ignore", message="Moving element", category=FutureWarning)
            source = anndata.read_h5ad(path)
    except Exception as error:  # a foreign file makes h5py and anndata raise almost anything
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise AnalysisError(
            f"The input {path.name!r} cannot be read as an AnnData file (h5ad): {type(error).__name__}: {reason}"
        ) from None

    if source.raw is None:
        raise AnalysisError(f"The input {path.name!r} has no .raw layer with log-normalised expression.")
    if missing := [name for name in (*QUALITY, LABELS) if name not in source.obs]:
        raise AnalysisError(f"The input {path.name!r} lacks the published columns {', '.join(missing)}.")
    for name in QUALITY:
        if not is_numeric_dtype(source.obs[name]) or not np.isfinite(source.obs[name].to_numpy(float)).all():
            raise AnalysisError(f"The quality column {name} of the input is not a finite number for every cell.")
    if source.obs["percent_mito"].max() > 1:
        raise AnalysisError("The quality column percent_mito of the input holds percentages; fractions are expected.")
    if not (source.obs_names.is_unique and source.raw.var_names.is_unique):
        raise AnalysisError("The cells and the genes of the input need unique names.")

    expression = sparse.csr_matrix(source.raw.X, dtype=np.float32)
    if not np.isfinite(expression.data).all() or (expression.data < 0).any():
        raise AnalysisError("The .raw layer of the input has negative or missing values, so it is not log-normalised.")
    if (expression.data == np.round(expression.data)).all():
        raise AnalysisError("The .raw layer of the input holds whole numbers (counts); log-normalised is expected.")

    cells = anndata.AnnData(expression, obs=source.obs.copy(), var=source.raw.var.copy())
    for name in {LABELS, OTHER_LABELS} & set(cells.obs):
        cells.obs[name] = cells.obs[name].astype("string").fillna("unlabelled").astype(str).astype("category")
    return cells


def filter_by_quality(cells: anndata.AnnData, parameters: Parameters) -> tuple[anndata.AnnData, dict[str, Any]]:
    """Drop poor cells; report the published quality before, and how many cells each bound would drop by itself."""
    quality = cells.obs[list(QUALITY)]
    below = quality["n_genes"] < parameters.min_genes
    above = quality["n_genes"] > parameters.max_genes
    dying = quality["percent_mito"] > parameters.max_mito_fraction
    kept = cells[~(below | above | dying)].copy()
    report = {
        "cells_before": cells.n_obs,
        "cells_after": kept.n_obs,
        "dropped_by": {
            "min_genes": int(below.sum()),
            "max_genes": int(above.sum()),
            "max_mito_fraction": int(dying.sum()),
        },
        "before": {
            name: {
                "min": six_digits(quality[name].min()),
                "median": six_digits(quality[name].median()),
                "max": six_digits(quality[name].max()),
            }
            for name in QUALITY
        },
    }
    needed = max(MIN_CELLS, parameters.n_neighbors + 1, parameters.n_pcs + 1)
    if kept.n_obs < needed:
        raise AnalysisError(
            f"{kept.n_obs} of {cells.n_obs} cells pass the quality filter and at least {needed} are needed; "
            f"widen min_genes, max_genes or max_mito_fraction, or lower n_neighbors or n_pcs."
        )
    return kept, report


def reduce(cells: anndata.AnnData, parameters: Parameters, seed: int) -> None:
    """Find highly variable genes and the principal components (``obsm["X_pca"]``) of their scaled expression."""
    import numpy as np
    import scanpy as sc

    n_top_genes = min(parameters.n_top_genes, cells.n_vars)
    sc.pp.highly_variable_genes(cells, n_top_genes=n_top_genes, flavor="seurat")
    chosen = cells.var["highly_variable"].to_numpy()
    if parameters.n_pcs >= chosen.sum():
        raise AnalysisError(
            f"{parameters.n_pcs} principal components (n_pcs) need more than that many highly variable genes; "
            f"there are {chosen.sum()}."
        )
    # Scaled on the side, so that the table that is handed on keeps the expression as it was measured.
    scaled = cells[:, chosen].copy()
    scaled.X = scaled.X.toarray()
    sc.pp.scale(scaled, max_value=10)
    sc.pp.pca(scaled, n_comps=parameters.n_pcs, svd_solver="arpack", random_state=seed)
    cells.obsm["X_pca"] = scaled.obsm["X_pca"]
    cells.uns["pca"] = {name: scaled.uns["pca"][name] for name in ("variance", "variance_ratio")}
    loadings = np.zeros((cells.n_vars, parameters.n_pcs))
    loadings[chosen] = scaled.varm["PCs"]
    cells.varm["PCs"] = loadings


def cluster(cells: anndata.AnnData, parameters: Parameters, seed: int) -> None:
    """Find Leiden clusters in the neighbour graph and number them by size: 0 is the largest (``obs["cluster"]``)."""
    import pandas as pd
    import scanpy as sc

    sc.tl.leiden(
        cells,
        resolution=parameters.resolution,
        flavor="igraph",
        directed=False,
        n_iterations=-1,  # until nothing moves any more: fewer depend more on the seed
        random_state=seed,
        key_added="cluster",
    )
    # The order in which the algorithm numbers them means nothing. The name breaks ties, so that the order is fixed.
    found = cells.obs["cluster"].astype(str)
    sizes = found.value_counts()
    order = sorted(sizes.index, key=lambda name: (-sizes[name], int(name)))
    new_names = {old: str(new) for new, old in enumerate(order)}
    cells.obs["cluster"] = pd.Categorical(found.map(new_names), categories=list(new_names.values()))


def rank_markers(cells: anndata.AnnData, n_markers: int) -> pd.DataFrame:
    """Rank genes by how much higher each cluster expresses them than all other cells.

    A Wilcoxon rank-sum test with tie correction (most values are tied at zero) and Benjamini-Hochberg adjustment over
    the genes of a cluster. The formulas, the sign and the fold change are those of ``scanpy.tl.rank_genes_groups``,
    which would spend a quarter of a minute compiling its ranking loop for a computation that takes a moment.

    Returns:
        A row a cluster and gene, ``n_markers`` genes a cluster, best first. Clusters of a single cell, and a cluster
        that is everything, have nothing to be compared with and no row.
    """
    import numpy as np
    import pandas as pd
    from scipy import stats

    n_cells, n_genes = cells.shape
    expression = cells.X.tocsc()
    clusters = cells.obs["cluster"]
    members = {name: (clusters == name).to_numpy() for name in clusters.cat.categories}

    rank_sums = {name: np.zeros(n_genes) for name in members}
    tie_factor = np.ones(n_genes)
    genes_at_once = 500  # bounds the memory: ranks are dense
    for start in range(0, n_genes, genes_at_once):
        block = slice(start, min(start + genes_at_once, n_genes))
        ranks = stats.rankdata(expression[:, block].toarray(), axis=0)
        tie_factor[block] = [stats.tiecorrect(column) for column in ranks.T]
        for name, member in members.items():
            rank_sums[name][block] = ranks[member].sum(axis=0)

    tables = []
    for name, member in members.items():
        inside = int(member.sum())
        outside = n_cells - inside
        if inside < 2 or outside < 2:
            continue
        expected = inside * (n_cells + 1) / 2
        spread = np.sqrt(tie_factor * inside * outside * (n_cells + 1) / 12)
        # A gene without any variation has a spread of zero and says nothing: score 0, p 1.
        score = np.divide(rank_sums[name] - expected, spread, out=np.zeros(n_genes), where=spread > 0)
        p_value = 2 * stats.norm.sf(np.abs(score))
        mean_inside = np.expm1(mean_of(cells.X[member]))
        mean_outside = np.expm1(mean_of(cells.X[~member]))
        table = pd.DataFrame(
            {
                "cluster": name,
                "gene": cells.var_names.to_numpy(str),
                "score": score,
                "log2_fold_change": np.log2((mean_inside + 1e-9) / (mean_outside + 1e-9)),
                "p_value": p_value,
                "p_adjusted": stats.false_discovery_control(p_value, method="bh"),
                "fraction_in_cluster": mean_of(cells.X[member] > 0),
                "fraction_elsewhere": mean_of(cells.X[~member] > 0),
            }
        )
        table = table.sort_values("score", ascending=False, kind="stable").head(n_markers)
        table.insert(1, "rank", range(1, len(table) + 1))
        tables.append(table)
    if not tables:
        columns = ["cluster", "rank", "gene", "score", "log2_fold_change", "p_value", "p_adjusted"]
        return pd.DataFrame(columns=[*columns, "fraction_in_cluster", "fraction_elsewhere"])
    return pd.concat(tables, ignore_index=True)


def mean_of(matrix: Any) -> np.ndarray:
    """Return the mean of each column of a sparse matrix, as a flat array of doubles."""
    import numpy as np

    return np.asarray(matrix.mean(axis=0, dtype=np.float64)).ravel()


def agreement(cells: anndata.AnnData) -> dict[str, dict[str, float]]:
    """Compare the clusters with each published labelling: adjusted Rand index and normalised mutual information."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        labels: {
            "adjusted_rand_index": six_digits(adjusted_rand_score(cells.obs[labels], cells.obs["cluster"])),
            "normalised_mutual_information": six_digits(normalized_mutual_info_score(cells.obs[labels], cells.obs["cluster"])),
        }
        for labels in (LABELS, OTHER_LABELS)
        if labels in cells.obs
    }


def describe_clusters(cells: anndata.AnnData, markers: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each cluster its size, its best markers, its most frequent published label, and all label counts."""
    clusters = []
    for name in cells.obs["cluster"].cat.categories:
        counts = most_frequent_first(cells.obs.loc[cells.obs["cluster"] == name, LABELS].astype(str))
        majority = next(iter(counts))
        size = sum(counts.values())
        clusters.append(
            {
                "cluster": name,
                "cells": size,
                "top_markers": markers.loc[markers["cluster"] == name, "gene"].head(5).tolist(),
                "majority_label": majority,
                "majority_fraction": six_digits(counts[majority] / size),
                "published_labels": counts,
            }
        )
    return clusters


def most_frequent_first(values: pd.Series) -> dict[str, int]:
    """Count values; equal counts are in the order of their names, so that the order is always the same."""
    counts = {str(value): int(count) for value, count in values.value_counts().items()}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def draw(cells: anndata.AnnData, clusters: list[dict[str, Any]], scores: dict[str, float], path: Path) -> None:
    """Draw the cells in the UMAP plane twice: by cluster, and by published label, each with its legend beside it."""
    from itertools import cycle

    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.patheffects import withStroke
    from scanpy.plotting import palettes

    umap = cells.obsm["X_umap"]
    lowest, highest = umap.min(axis=0), umap.max(axis=0)
    centre, reach = (lowest + highest) / 2, 0.55 * (highest - lowest).max()
    point_area = float(np.clip(12000 / cells.n_obs, 2, 18))
    figure, panels = plt.subplots(1, 2, figsize=(14, 4.9), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)

    def scatter(axes: Axes, values: pd.Series, names: dict[str, str], palette: list[str], title: str) -> None:
        colours = cycle(palette if len(names) <= len(palette) else palettes.godsnot_102)
        for colour, (value, name) in zip(colours, names.items(), strict=False):
            here = (values == value).to_numpy()
            axes.scatter(*umap[here].T, s=point_area, color=colour, linewidths=0, alpha=0.9, label=name)
        axes.set_xlabel("UMAP 1")
        axes.set_ylabel("UMAP 2")
        # The axes of a UMAP have no unit and distances far apart mean little: no ticks, equal scale.
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlim(centre[0] - reach, centre[0] + reach)
        axes.set_ylim(centre[1] - reach, centre[1] + reach)
        axes.set_box_aspect(1)
        axes.spines[["top", "right"]].set_visible(False)
        handles, texts = axes.get_legend_handles_labels()
        if len(names) > MAX_LEGEND:
            handles, texts = handles[:MAX_LEGEND], texts[:MAX_LEGEND]
            title += f", the {MAX_LEGEND} largest named"
        axes.set_title(title, fontsize=13, loc="left")
        axes.legend(
            handles,
            texts,
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
            fontsize=9,
            markerscale=2.2,
            handletextpad=0.3,
        )

    by_cluster = {}
    for entry in clusters:
        markers = ", ".join(entry["top_markers"][:2]) or "no markers"
        by_cluster[entry["cluster"]] = f"{entry['cluster']}: {markers} ({entry['cells']})"
    title = f"{len(clusters)} Leiden clusters, {cells.n_obs} cells"
    scatter(panels[0], cells.obs["cluster"], by_cluster, palettes.vega_20_scanpy, title)
    for name in list(by_cluster)[:MAX_LEGEND]:
        points = umap[(cells.obs["cluster"] == name).to_numpy()]
        # The number of a cluster that it would hide stands above the cluster.
        small = np.ptp(points, axis=0).max() < 0.16 * reach
        panels[0].annotate(
            name,
            (np.median(points[:, 0]), points[:, 1].max() if small else np.median(points[:, 1])),
            xytext=(0, 4 if small else 0),
            textcoords="offset points",
            ha="center",
            va="bottom" if small else "center",
            fontsize=12 if len(by_cluster) <= 12 else 9,
            weight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )

    labels = cells.obs[LABELS].astype(str)
    frequency = most_frequent_first(labels)
    by_label = {label: f"{label} ({count})" for label, count in frequency.items()}
    rand, information = scores["adjusted_rand_index"], scores["normalised_mutual_information"]
    # Other colours than beside it: the same ones would say that a label and a cluster belong together.
    title = f"Published labels (ARI {rand:.2f}, NMI {information:.2f})"
    scatter(panels[1], labels, by_label, MUTED, title)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


def write_tables(cells: anndata.AnnData, markers: pd.DataFrame, summary: dict[str, Any], outputs: Path) -> None:
    import pandas as pd

    table = pd.DataFrame(
        {
            "cell": cells.obs_names.to_numpy(str),
            "cluster": cells.obs["cluster"].to_numpy(str),
            "umap_1": cells.obsm["X_umap"][:, 0],
            "umap_2": cells.obsm["X_umap"][:, 1],
            "published_label": cells.obs[LABELS].to_numpy(str),
            **{name: cells.obs[name].to_numpy() for name in QUALITY},
        }
    )
    table.to_csv(outputs / "clusters.csv", index=False, float_format=FLOATS, lineterminator="\n")
    markers.to_csv(outputs / "markers.csv", index=False, float_format=FLOATS, lineterminator="\n")
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    (outputs / "summary.json").write_text(text + "\n", encoding="utf-8")


def six_digits(value: float) -> float:
    """Round as the tables do, so that the last bits of a sum never show."""
    return float(FLOATS % value)


def run(messages: Messages) -> None:
    """Do the whole analysis; see the module's docstring."""
    parameters = Parameters.read(variable_path("FORGE_PARAMS"))
    inputs, outputs = variable_path("FORGE_INPUTS"), variable_path("FORGE_OUTPUTS")
    seed = read_seed()

    messages.progress(0.0, "loading scanpy")
    # numba would write its cache into the runtime where it may, and a runtime must stay as it was verified.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path.cwd() / "numba-cache"))
    import scanpy as sc

    messages.progress(0.12, "reading cells")
    everything = read_cells(inputs / "cells")
    cells, quality = filter_by_quality(everything, parameters)
    dropped = everything.n_obs - cells.n_obs
    messages.log(f"Cells: {everything.n_obs}, dropped for their quality: {dropped}; genes: {everything.n_vars}")

    messages.progress(0.15, "finding highly variable genes and principal components")
    reduce(cells, parameters, seed)
    explained = float(cells.uns["pca"]["variance_ratio"].sum())

    messages.progress(0.3, "computing neighbours")  # the longest step: importing umap compiles its functions
    sc.pp.neighbors(cells, n_neighbors=parameters.n_neighbors, use_rep="X_pca", random_state=seed)

    messages.progress(0.75, "clustering")
    cluster(cells, parameters, seed)
    scores = agreement(cells)
    n_clusters = len(cells.obs["cluster"].cat.categories)
    rand = scores[LABELS]["adjusted_rand_index"]
    messages.log(f"Clusters: {n_clusters}; adjusted Rand index against {LABELS}: {rand:.3f}")

    messages.progress(0.78, "computing UMAP")
    sc.tl.umap(cells, min_dist=parameters.min_dist, random_state=seed)

    messages.progress(0.86, "ranking marker genes")
    markers = rank_markers(cells, parameters.n_markers)
    clusters = describe_clusters(cells, markers)

    messages.progress(0.9, "drawing")
    draw(cells, clusters, scores[LABELS], outputs / "umap.png")

    messages.progress(0.96, "writing tables")
    summary = {
        "input": {"cells": everything.n_obs, "genes": everything.n_vars},
        "parameters": asdict(parameters),
        "seed": seed,
        "quality": quality,
        "highly_variable_genes": int(cells.var["highly_variable"].sum()),
        "variance_explained_by_pca": six_digits(explained),
        "agreement": scores,
        "clusters": clusters,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
    write_tables(cells, markers, summary, outputs)
    cells.write_h5ad(outputs / "annotated.h5ad", compression="gzip")

    messages.metadata(
        {
            "cells": cells.n_obs,
            "cells_dropped": dropped,
            "clusters": n_clusters,
            "ari": rand,
            "nmi": scores[LABELS]["normalised_mutual_information"],
            "variance_explained": six_digits(explained),
            "largest_cluster": clusters[0]["majority_label"],
        }
    )
    for entry in clusters:
        share = f"{entry['majority_fraction']:.0%} {entry['majority_label']}"
        print(f"cluster {entry['cluster']:>2}: {entry['cells']:4d} cells, {share}; {', '.join(entry['top_markers'])}")
    messages.progress(1.0, "done")


def main() -> int:
    with Messages(os.environ.get("FORGE_MESSAGES")) as messages:
        try:
            run(messages)
        except AnalysisError as error:
            messages.log(str(error), level="error")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
