"""Normalisation: the same depth for all cells, logarithms, and the principal components of the genes that vary.

Depth is divided out to the median of all cells. The highly variable genes are those whose dispersion is large for their mean; where
there are no more genes than asked for, all are used. They are scaled on the side: what is handed on is the expression as it was
measured, with the components beside it.

A plain script: it reads ``$FORGE_INPUTS/cells`` (counts, h5ad), the parameters at ``$FORGE_PARAMS`` and ``$FORGE_SEED``, and writes to
``$FORGE_OUTPUTS``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

MAX_SCALED = 10
"""Standard deviations beyond which a value is cut off: one cell is not a component."""
FLOATS = "%.6g"


def say(**message: object) -> None:
    """Tell whoever watches."""
    with open(os.environ["FORGE_MESSAGES"], "a") as file:
        file.write(json.dumps(message) + "\n")


def main() -> None:
    """Run the stage."""
    say(type="progress", fraction=0.0, message="loading scanpy")
    import anndata
    import numpy as np
    import pandas as pd
    import scanpy as sc

    outputs, seed = Path(os.environ["FORGE_OUTPUTS"]), int(os.environ["FORGE_SEED"])
    params = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())
    cells = anndata.read_h5ad(Path(os.environ["FORGE_INPUTS"], "cells"))
    say(type="progress", fraction=0.5, message=f"normalising {cells.n_obs} cells")
    expressed_by = cells.X.getnnz(axis=0)
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)

    if cells.n_vars > params["n_top_genes"]:
        sc.pp.highly_variable_genes(cells, n_top_genes=params["n_top_genes"], flavor="seurat")
    else:
        cells.var["highly_variable"] = True
    used = cells.var["highly_variable"].to_numpy()
    if params["n_pcs"] >= min(cells.n_obs, used.sum()):
        raise SystemExit(
            f"{params['n_pcs']} principal components (n_pcs) need more cells and genes: there are {cells.n_obs} and {used.sum()}."
        )

    say(type="progress", fraction=0.7, message=f"principal components of {used.sum()} genes")
    scaled = cells[:, used].copy()
    scaled.X = scaled.X.toarray()
    sc.pp.scale(scaled, max_value=MAX_SCALED)
    sc.pp.pca(scaled, n_comps=params["n_pcs"], svd_solver="arpack", random_state=seed)
    cells.obsm["X_pca"] = scaled.obsm["X_pca"]
    cells.write_h5ad(outputs / "normalised.h5ad", compression="gzip")

    genes = pd.DataFrame(
        {"cells": expressed_by, "mean": np.asarray(cells.X.mean(axis=0)).ravel(), "used": used}, index=cells.var_names
    )
    genes.to_csv(outputs / "genes.csv", index_label="gene", float_format=FLOATS)
    shares = scaled.uns["pca"]["variance_ratio"]
    numbers = {
        "genes_used": int(used.sum()), "counts_of_each_cell": float(np.median(cells.obs["counts"])),
        "variance_of_components": [float(FLOATS % share) for share in shares], "parameters": params,
    }  # fmt: skip
    (outputs / "normalise.json").write_text(json.dumps(numbers, indent=2) + "\n")
    explained = float(FLOATS % shares.sum())
    say(type="metadata", values={"genes_used": numbers["genes_used"], "variance_explained": explained})
    say(type="progress", fraction=1.0, message="done")
    print(f"{params['n_pcs']} components of {used.sum()} genes hold {explained:.1%} of the variance")


if __name__ == "__main__":
    main()
