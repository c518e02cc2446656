"""Show that this runtime works: every library is loaded and used, on problems whose answers are known.

Importing alone would pass with a library whose compiled part crashes when it is called.
"""

import os
import sys
import tempfile
from pathlib import Path


def expect(condition: bool, otherwise: str) -> None:
    """Raise where a check fails; unlike ``assert`` also under ``python -O``."""
    if not condition:
        raise RuntimeError(otherwise)


def check(scratch: Path) -> str:
    """Return a sentence on what was checked; any error is the failure."""
    # numba and matplotlib would write their caches into the runtime or the home folder.
    os.environ["NUMBA_CACHE_DIR"] = str(scratch / "numba")
    os.environ["MPLCONFIGDIR"] = str(scratch / "matplotlib")
    from importlib.resources import files

    import anndata
    import igraph
    import leidenalg
    import matplotlib as mpl
    import numpy as np
    import pandas as pd
    import scanpy as sc

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.metrics import adjusted_rand_score

    # Zachary's karate club: the partition of greatest modularity has four groups and a modularity of 0.4198.
    club = igraph.Graph.Famous("Zachary")
    partition = leidenalg.find_partition(club, leidenalg.ModularityVertexPartition, n_iterations=-1, seed=1)
    expect(len(partition) == 4 and abs(partition.modularity - 0.4198) < 1e-4, "leidenalg finds the wrong communities")

    # Three groups of cells far apart: scaling, components, neighbours (numba), Leiden and UMAP must keep them apart.
    truth = np.repeat(["a", "b", "c"], 30)
    centres = np.random.default_rng(1).normal(scale=20, size=(3, 25))[np.repeat([0, 1, 2], 30)]
    values = centres + np.random.default_rng(2).normal(size=(90, 25))
    cells = anndata.AnnData(values.astype(np.float32), obs=pd.DataFrame({"truth": truth}, index=[f"c{i}" for i in range(90)]))
    sc.pp.scale(cells)
    sc.pp.pca(cells, n_comps=5, random_state=0)
    sc.pp.neighbors(cells, n_neighbors=10, random_state=0)
    sc.tl.leiden(cells, resolution=0.1, flavor="igraph", n_iterations=-1, directed=False, random_state=0)
    expect(adjusted_rand_score(cells.obs["leiden"], truth) == 1, "three groups far apart are not told apart")
    sc.tl.umap(cells, maxiter=20, random_state=0)
    expect(np.isfinite(cells.obsm["X_umap"]).all(), "UMAP gives values that are not finite")

    # Written and read again, and the data set that the shipped analysis names as its input.
    cells.write_h5ad(scratch / "cells.h5ad")
    again = anndata.read_h5ad(scratch / "cells.h5ad")
    expect((again.X == cells.X).all() and (again.obs["truth"] == truth).all(), "an h5ad file changes on its way")
    published = anndata.read_h5ad(files("scanpy") / "datasets" / "10x_pbmc68k_reduced.h5ad")
    expect(published.raw.shape == (700, 765), "the PBMC data set in scanpy is not the expected one")

    cells.obs.to_parquet(scratch / "cells.parquet")
    expect(pd.read_parquet(scratch / "cells.parquet").equals(cells.obs), "a Parquet file changes on its way")

    figure, axes = plt.subplots()
    axes.scatter(*cells.obsm["X_umap"].T)
    figure.savefig(scratch / "umap.png")
    expect((scratch / "umap.png").read_bytes().startswith(b"\x89PNG"), "matplotlib does not write PNG files")
    return f"scanpy {sc.__version__} and what it needs work on Python {sys.version.split()[0]}."


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    try:
        with tempfile.TemporaryDirectory() as folder:
            print(check(Path(folder)))
    except Exception as error:  # whatever a broken runtime raises, the answer is one sentence
        print(f"This runtime is broken: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
