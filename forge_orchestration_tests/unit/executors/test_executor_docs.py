"""The table that maps the contract to services that have no executor yet: it has a row for every part of the contract."""

from __future__ import annotations

import re
from pathlib import Path

from forge_orchestration.executors.base import AnalysisExecutor, ExecutorCapabilities
from forge_orchestration.executors.local import LocalExecutor
from forge_orchestration.executors.registry import SHIPPED
from forge_orchestration.model.reasons import EndReason

PAGE = Path(__file__).resolve().parents[3] / "docs" / "executors.md"


def test_every_part_of_the_contract_is_mapped() -> None:
    table = PAGE.read_text().partition("## AWS Batch and Kubernetes")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| ")]
    assert rows[0] == [" contract ", " AWS Batch ", " Kubernetes "]
    assert all(cell.strip() for row in rows for cell in row)
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row[0])}
    methods = {name for name in vars(AnalysisExecutor) if not name.startswith("_")} - {"name", "capabilities", "warm_up"}
    in_words = {"where", "enforced_by", "cannot", "limits", "reattach"}  # what is said of an executor, not of an execution
    wanted = methods | LocalExecutor.capabilities.limits | set(EndReason) | set(ExecutorCapabilities.__struct_fields__) - in_words
    assert wanted <= named, wanted - named


def test_nothing_is_named_that_does_not_work() -> None:
    assert set(SHIPPED) == {"local", "docker", "slurm"}
    for name in SHIPPED:
        assert f"\n## `{name}`\n" in PAGE.read_text()
