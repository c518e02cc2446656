"""What was found of one target as Dagster shows it: one check result with a sentence, a table, and numbers for its plots."""

import platform
from collections.abc import Mapping
from typing import Any

import dagster as dg

from forge_orchestration.errors import ForgeError
from forge_orchestration.model.health import CheckResult
from forge_orchestration.operations.inspection import Inspection, Kind
from forge_orchestration.runtimes import catalog
from forge_orchestration.settings import Settings

QUICK = "healthy"
FULL = "verified"
_COLUMNS = {"check": "string", "passed": "bool", "severity": "string", "finding": "string", "remedy": "string"}
_SCHEMA = dg.TableSchema([dg.TableColumn(name, kind) for name, kind in _COLUMNS.items()])


def verdict(inspection: Inspection) -> dict[str, Any]:
    """All checks of one target as one, as arguments of an evaluation: whether all passed, how bad it is, what to do."""
    failed = [result for result in inspection.results if not result.passed]
    errors = [result for result in failed if result.severity == "error"]
    if not inspection.results:
        return {"passed": False, "severity": dg.AssetCheckSeverity.WARN, "description": "No check looked at it."}
    return {
        "passed": not failed,
        "severity": dg.AssetCheckSeverity.ERROR if errors else dg.AssetCheckSeverity.WARN,
        "description": " ".join(map(_sentence, errors or failed)) or "All checks passed.",
        "metadata": {
            "checks": dg.MetadataValue.table([_row(result) for result in inspection.results], _SCHEMA),
            **_numbers(inspection),
        },
    }


def evaluation(key: dg.AssetKey, check: str, inspection: Inspection) -> dg.AssetCheckEvaluation:
    """The same as an event."""
    return dg.AssetCheckEvaluation(asset_key=key, check_name=check, **verdict(inspection))


def materialization(key: dg.AssetKey, check: str, inspection: Inspection, version: str) -> dg.AssetMaterialization:
    """That the target was looked at, and what it was then; Dagster plots the numbers of materializations, not those of checks."""
    numbers = {name if name == "files" else f"{check}/{name}": value for name, value in _numbers(inspection).items()}
    return dg.AssetMaterialization(key, metadata=numbers, tags={"dagster/data_version": version})


def version_of(target: str, kind: Kind, settings: Settings) -> str:
    """What a runtime is, by the digest of its content; of the host, the kernel that enforces what is promised."""
    if kind == "host":
        return platform.release()
    if kind != "runtime":
        return "as it is"  # what it holds changes all the time
    try:
        build = catalog.load_build(catalog.build_folder(catalog.load_definition(target, settings), settings))
    except ForgeError:  # the checks say what is wrong with it
        return "unknown"
    return build.content_digest if build else "not built"


def results_of(metadata: Mapping[str, dg.MetadataValue], target: str) -> list[CheckResult]:
    """The single results of an evaluation that was reported before."""
    table = metadata.get("checks")
    rows = [record.data for record in table.records] if isinstance(table, dg.TableMetadataValue) else []
    return [
        CheckResult(
            name=str(row["check"]), target=target, passed=bool(row["passed"]), finding=str(row["finding"]), remedy=str(row["remedy"]),
            severity="warning" if row["severity"] == "warning" else "error",
        )
        for row in rows
    ]  # fmt: skip


def _numbers(inspection: Inspection) -> dict[str, float]:
    numbers = {"findings": inspection.findings, "seconds": inspection.took_s}
    return numbers if inspection.files is None else {**numbers, "files": inspection.files}


def _row(result: CheckResult) -> dg.TableRecord:
    values = (result.name, result.passed, result.severity, result.finding, result.remedy)
    return dg.TableRecord(dict(zip(_COLUMNS, values, strict=True)))


def _sentence(result: CheckResult) -> str:
    remedy = f" Remedy: {result.remedy}" if result.remedy else ""
    return f"{result.name}: {result.finding.rstrip('.')}.{remedy}"
