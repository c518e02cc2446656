"""Clusters: groups of cells that are each other's neighbours, and a plane to look at them in.

Leiden clusters depend on the order in which cells are moved. They are found again with other seeds, and how much those agree is
written down (adjusted Rand index): groups that come and go with the seed are none. The plane (UMAP) is a picture; no cluster comes
from it.

A plain script: it reads ``$FORGE_INPUTS/cells`` (h5ad with principal components), the parameters at ``$FORGE_PARAMS`` and
``$FORGE_SEED``, and writes to ``$FORGE_OUTPUTS``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anndata
    import numpy as np

OTHER_SEEDS = 10
ENOUGH_AGREEMENT = 0.8
FLOATS = "%.6g"


def say(**message: object) -> None:
    """Tell whoever watches."""
    with open(os.environ["FORGE_MESSAGES"], "a") as file:
        file.write(json.dumps(message) + "\n")


def clusters_of(cells: anndata.AnnData, resolution: float, seed: int) -> np.ndarray:
    """The cluster of each cell, numbered by size: 0 is the largest."""
    import numpy as np
    import scanpy as sc

    # -1: until nothing moves any more, which depends least on the seed
    sc.tl.leiden(
        cells, resolution=resolution, flavor="igraph", directed=False, n_iterations=-1, random_state=seed, key_added="found"
    )  # fmt: skip
    del cells.uns["found"]
    found = cells.obs.pop("found").astype(int).to_numpy()
    by_size = np.argsort(-np.bincount(found), kind="stable")
    return np.argsort(by_size, kind="stable")[found]


def main() -> None:
    """Run the stage."""
    say(type="progress", fraction=0.0, message="loading scanpy")
    # numba would write its cache into the runtime where it may, and a runtime must stay as it was verified
    os.environ["NUMBA_CACHE_DIR"] = os.environ["TMPDIR"]
    import anndata
    import numpy as np
    import pandas as pd
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score

    outputs, seed = Path(os.environ["FORGE_OUTPUTS"]), int(os.environ["FORGE_SEED"])
    params = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())
    cells = anndata.read_h5ad(Path(os.environ["FORGE_INPUTS"], "cells"))
    if params["n_neighbors"] >= cells.n_obs:
        raise SystemExit(f"{params['n_neighbors']} neighbours (n_neighbors) need more cells than {cells.n_obs}.")

    say(type="progress", fraction=0.15, message="computing neighbours")  # the longest: importing umap compiles its functions
    sc.pp.neighbors(cells, n_neighbors=params["n_neighbors"], use_rep="X_pca", random_state=seed)
    say(type="progress", fraction=0.7, message="clustering")
    found = clusters_of(cells, params["resolution"], seed)
    others = [clusters_of(cells, params["resolution"], seed + number) for number in range(1, OTHER_SEEDS + 1)]
    agreement = float(np.mean([adjusted_rand_score(found, other) for other in others]))
    cells.obs["cluster"] = pd.Categorical(found.astype(str), categories=[str(number) for number in range(found.max() + 1)])

    say(type="progress", fraction=0.8, message="computing UMAP")
    sc.tl.umap(cells, min_dist=params["min_dist"], random_state=seed)
    cells.write_h5ad(outputs / "clustered.h5ad", compression="gzip")
    table = pd.DataFrame(
        {"cluster": found, "umap_1": cells.obsm["X_umap"][:, 0], "umap_2": cells.obsm["X_umap"][:, 1]}, index=cells.obs_names
    )
    table.to_csv(outputs / "clusters.csv", index_label="cell", float_format=FLOATS)
    sizes = np.bincount(found).tolist()
    numbers = {
        "clusters": len(sizes), "cells_of_each": sizes, "agreement_of_seeds": float(FLOATS % agreement),
        "clusters_of_other_seeds": [int(other.max()) + 1 for other in others], "parameters": params, "seed": seed,
    }  # fmt: skip
    (outputs / "clusters.json").write_text(json.dumps(numbers, indent=2) + "\n")
    say(type="metadata", values={"clusters": len(sizes), "largest": max(sizes), "smallest": min(sizes), "agreement_of_seeds": round(agreement, 3)})  # fmt: skip
    say(
        type="check", name="same_with_other_seeds", passed=agreement >= ENOUGH_AGREEMENT, level="warning",
        message=f"adjusted Rand index {agreement:.2f} in the mean of {OTHER_SEEDS} other seeds", values={"agreement": round(agreement, 3)},
    )  # fmt: skip
    say(type="progress", fraction=1.0, message="done")
    print(
        f"{len(sizes)} clusters of {', '.join(map(str, sizes))} cells; with other seeds the adjusted Rand index is {agreement:.2f}"
    )


if __name__ == "__main__":
    main()
