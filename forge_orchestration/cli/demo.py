"""What `make demo` prints at its end: the newest execution of an analysis, its first table, and where everything is."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from forge_orchestration.cli.show import print_record, print_table
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.settings import load_settings


def show_demo(analysis: str) -> None:
    """Print the newest succeeded execution of `analysis`: the cluster table, its record, and how to open the UI."""
    settings = load_settings()
    rows = Store(settings.store_path).list(limit=1, analysis=analysis, status="succeeded")
    if not rows:
        sys.exit(f"forge: there is no succeeded execution of {analysis}")
    record = ExecutionFolder(settings.executions_dir, str(rows[0]["execution_id"])).read_record()
    _print_clusters(Path(record.folder, "outputs"))
    print_record(record)
    print("\nThe Dagster UI: make ui, then http://127.0.0.1:3000 (Assets → single_cell → pbmc_clusters)")


def _print_clusters(outputs: Path) -> None:
    with open(outputs / "clusters.csv", newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    with open(outputs / "markers.csv", newline="", encoding="utf-8") as file:
        markers = list(csv.DictReader(file))
    label = next(column for column in cells[0] if "label" in column)
    rows = []
    for cluster in sorted({cell["cluster"] for cell in cells}, key=int):
        labels = [cell[label] for cell in cells if cell["cluster"] == cluster]
        most = max(set(labels), key=labels.count)
        genes = [marker["gene"] for marker in markers if marker["cluster"] == cluster][:5]
        rows.append(
            {
                "cluster": cluster,
                "cells": len(labels),
                "published label": f"{most} ({labels.count(most) / len(labels):.0%})",
                "markers": ", ".join(genes),
            }
        )
    print(f"\n{len(cells)} cells in {len(rows)} clusters")
    print_table(rows)
