"""Quality control of counts: which cells are kept, and which genes.

A cell is dropped if its counts or its detected genes are far from those of the others (on a logarithmic scale, since both are
skewed), if it has too few genes to be told from others, or if too many of its counts are mitochondrial (a cell that has burst keeps
those longest). What is far is measured in median absolute deviations, which the outliers themselves do not move.

A plain script: it reads ``$FORGE_INPUTS/counts`` and the parameters at ``$FORGE_PARAMS``, and writes to ``$FORGE_OUTPUTS``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anndata
    import numpy as np

NORMAL = 1.4826
"""Median absolute deviations of a normal distribution in its standard deviation."""
LEAST_CELLS = 100
FLOATS = "%.6g"


def say(**message: object) -> None:
    """Tell whoever watches."""
    with open(os.environ["FORGE_MESSAGES"], "a") as file:
        file.write(json.dumps(message) + "\n")


def read(path: Path) -> anndata.AnnData:
    """Counts (cells x genes, sparse), with unique names."""
    import anndata
    import h5py
    import numpy as np
    import scanpy
    from scipy import sparse

    if not h5py.is_hdf5(path):
        raise SystemExit("The counts are neither a 10x HDF5 file nor an h5ad file.")
    with h5py.File(path) as file:
        is_h5ad = "X" in file
    try:
        cells = anndata.read_h5ad(path) if is_h5ad else scanpy.read_10x_h5(path)
    except Exception as error:  # a foreign file makes them raise almost anything
        raise SystemExit(f"The counts cannot be read: {type(error).__name__}: {error}") from None
    counts = sparse.csr_matrix(cells.X, dtype=np.float32)
    if (counts.data < 0).any() or (counts.data != np.round(counts.data)).any():
        raise SystemExit("The counts are not whole numbers: this begins with what was counted, not with what was made of it.")
    kept = anndata.AnnData(counts, obs=cells.obs[[]], var=cells.var[[one for one in ("gene_ids",) if one in cells.var]])
    kept.obs_names_make_unique()
    kept.var_names_make_unique()
    return kept


def usual(values: np.ndarray, n_mads: float) -> tuple[float, float]:
    """From where to where a value is not far from the others."""
    import numpy as np

    logarithms = np.log1p(values)
    middle = np.median(logarithms)
    reach = n_mads * NORMAL * np.median(np.abs(logarithms - middle))
    return float(np.expm1(middle - reach)), float(np.expm1(middle + reach))


def main() -> None:
    """Run the stage."""
    say(type="progress", fraction=0.0, message="loading scanpy")
    import numpy as np
    import pandas as pd

    outputs = Path(os.environ["FORGE_OUTPUTS"])
    params = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())
    cells = read(Path(os.environ["FORGE_INPUTS"], "counts"))
    say(type="progress", fraction=0.5, message=f"{cells.n_obs} cells, {cells.n_vars} genes")

    counts = np.asarray(cells.X.sum(axis=1)).ravel()
    genes = cells.X.getnnz(axis=1)
    is_mito = cells.var_names.str.upper().str.startswith("MT-")
    mito = np.asarray(cells.X[:, is_mito].sum(axis=1)).ravel() / np.maximum(counts, 1)
    bounds = {"counts": usual(counts, params["n_mads"]), "genes": usual(genes, params["n_mads"])}
    reasons = {
        "few counts": counts < bounds["counts"][0],
        "many counts": counts > bounds["counts"][1],
        "few genes": (genes < bounds["genes"][0]) | (genes < params["min_genes"]),
        "many genes": genes > bounds["genes"][1],
        "mitochondrial": mito > params["max_mito_fraction"],
    }
    why = np.array([", ".join(name for name, is_so in reasons.items() if is_so[cell]) for cell in range(cells.n_obs)], dtype=object)
    kept = why == ""
    quality = pd.DataFrame(
        {"counts": counts.astype(int), "genes": genes, "mito_fraction": mito, "dropped": why}, index=cells.obs_names
    )
    quality.to_csv(outputs / "quality.csv", index_label="cell", float_format=FLOATS)

    filtered = cells[kept].copy()
    filtered = filtered[:, filtered.X.getnnz(axis=0) >= params["min_cells"]].copy()
    if 0 in filtered.shape:
        raise SystemExit(
            f"No cell is left with a gene that {params['min_cells']} cells express. Widen the parameters of this stage."
        )
    filtered.obs[["counts", "genes"]] = quality.loc[filtered.obs_names, ["counts", "genes"]]
    filtered.write_h5ad(outputs / "filtered.h5ad", compression="gzip")

    numbers = {
        "cells": cells.n_obs, "cells_kept": filtered.n_obs, "genes": cells.n_vars, "genes_kept": filtered.n_vars,
        "mitochondrial_genes": int(is_mito.sum()), "median_counts": float(np.median(counts[kept])), "median_genes": float(np.median(genes[kept])),
        "usual": {name: [round(bound, 2) for bound in pair] for name, pair in bounds.items()},
        "dropped": {name: int(is_so.sum()) for name, is_so in reasons.items()}, "parameters": params,
    }  # fmt: skip
    (outputs / "qc.json").write_text(json.dumps(numbers, indent=2) + "\n")
    say(type="metadata", values={name: numbers[name] for name in ("cells", "cells_kept", "genes", "genes_kept", "median_counts", "median_genes")})  # fmt: skip
    enough = filtered.n_obs >= LEAST_CELLS and 2 * filtered.n_obs >= cells.n_obs
    say(type="check", name="enough_cells", passed=enough, message=f"{filtered.n_obs} of {cells.n_obs} cells are kept")
    say(type="progress", fraction=1.0, message="done")
    print(
        f"{filtered.n_obs} of {cells.n_obs} cells and {filtered.n_vars} of {cells.n_vars} genes are kept; dropped: {numbers['dropped']}"
    )


if __name__ == "__main__":
    main()
