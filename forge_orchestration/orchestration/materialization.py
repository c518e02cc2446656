"""A record as metadata of a materialization or of a failed step.

What we measured or know stands under plain names; what the analysis claims about itself stands under `analysis/`, so
that no claim can pass for a fact. Numbers are numbers, because Dagster draws them over time.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from forge_orchestration.executions.logs import tail
from forge_orchestration.executions.messages import printable
from forge_orchestration.model.limits import Limits, limits_as_written
from forge_orchestration.model.record import CheckFacts, ExecutionRecord, Measured
from forge_orchestration.orchestration.op_config import in_units

MAX_ROWS = 100
MAX_CLAIMS = 100
MAX_CLAIM_CHARS = 2000
STDERR_BYTES = 4096
_MIB = 2**20

Metadata = dict[str, dg.MetadataValue[Any]]


def record_metadata(record: ExecutionRecord) -> Metadata:
    """Everything that the record says and a reader of the UI may ask."""
    folder = Path(record.folder)
    facts: dict[str, object] = {
        "execution_id": record.execution_id,
        "partition": record.partition,
        "end_reason": record.end_reason.value if record.end_reason else "none",
        "message": record.message,
        "exit_code": record.exit_code,
        "signal": record.signal,
        "executor": record.executor,
        "host": record.host,
        "seed": record.seed,
        "threads": record.threads,
        "fingerprint": record.fingerprint,
        **_reuse(record),
        "record": dg.MetadataValue.path(str(folder / "record.json")),
        "command": " ".join(record.command),
        "parameters": dg.MetadataValue.json(record.parameters),
        **{f"log/{name}": dg.MetadataValue.path(log.path) for name, log in record.logs.items()},
        **_code(record),
        **_runtime(record),
        "limits": _limits(record),
        **_isolation(record),
        **_usage(record),
        **_guard(record),
        "inputs": _table(("name", "sha256", "bytes", "source"), [(i.name, i.sha256, i.bytes, i.source) for i in record.inputs]),
        "outputs": _table(("name", "sha256", "bytes", "path"), [(o.name, o.sha256, o.bytes, o.path) for o in record.outputs]),
        "output_folder": dg.MetadataValue.path(str(folder / "outputs")),
    }
    if record.published:
        rows = [
            (one.name, one.target, str(one.rows) if one.rows is not None else "", one.execution_id, one.error)
            for one in record.published
        ]
        facts["published"] = _table(("publication", "target", "rows", "execution", "error"), rows)
    if record.rejected_outputs:
        facts["rejected_outputs"] = _table(("path", "why"), [(r.path, r.why) for r in record.rejected_outputs])
    facts.update(_claims(record.metadata))
    return {name: _value(value) for name, value in facts.items() if value is not None}


def materialization_tags(record: ExecutionRecord) -> dict[str, str]:
    """By which a materialization is found from its execution."""
    return {"forge/execution_id": record.execution_id}


def check_result(check: CheckFacts) -> dg.AssetCheckResult:
    """A check as the analysis reports it."""
    severity = dg.AssetCheckSeverity.WARN if check.severity == "warning" else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(
        passed=check.passed,
        check_name=check.name,
        severity=severity,
        description=check.message or None,
        metadata={name: _value(value) for name, value in _claims(check.values).items()},
    )


def data_version(record: ExecutionRecord) -> str:
    """A digest of all outputs: two executions that made the same files have the same one."""
    digest = hashlib.sha256()
    for output in sorted(record.outputs, key=lambda output: output.path):
        digest.update(f"{output.sha256} {output.path}\0".encode())
    return digest.hexdigest()


def stderr_tail(record: ExecutionRecord) -> Metadata:
    """The end of standard error, indented: in Markdown nothing in an indented block means anything."""
    log = record.logs.get("stderr")
    text = printable(tail(Path(log.path), STDERR_BYTES).decode("utf-8", "backslashreplace")) if log else ""
    if not text.strip():
        return {}
    return {"stderr": dg.MetadataValue.md("\n".join(f"    {line}" for line in text.splitlines()))}


def _value(value: object) -> dg.MetadataValue[Any]:
    if isinstance(value, dg.MetadataValue):
        return value
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):  # GraphQL has no place for more than 32 bits but as text beside the number
        return dg.MetadataValue.int(value)
    return dg.MetadataValue.float(value) if isinstance(value, float) else dg.MetadataValue.text(str(value))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str | int | float | None]]) -> dg.MetadataValue[Any]:
    records = [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows[:MAX_ROWS]]
    if len(rows) > MAX_ROWS:
        rest = f"{len(rows) - MAX_ROWS} more: see the record"
        records.append(dg.TableRecord({column: rest if column == columns[0] else None for column in columns}))
    kinds = {column: "int" if column == "bytes" else "string" for column in columns}
    schema = dg.TableSchema([dg.TableColumn(column, kind) for column, kind in kinds.items()])
    return dg.MetadataValue.table(records, schema)


def _code(record: ExecutionRecord) -> dict[str, object]:
    if record.code is None:
        return {}
    commit = record.code.git_commit
    changed = " with uncommitted changes" if record.code.git_dirty else ""
    return {"code/sha256": record.code.sha256, "code/git_commit": f"{commit}{changed}" if commit else None}


def _runtime(record: ExecutionRecord) -> dict[str, object]:
    runtime = record.runtime
    if runtime is None:
        return {}
    return {
        "runtime": runtime.name,
        "runtime/kind": runtime.kind,
        "runtime/python": runtime.python,
        "runtime/content_digest": runtime.content_digest,
        "runtime/seal_digest": runtime.seal_digest,
        "runtime/verified_at": dg.MetadataValue.timestamp(runtime.verified_at),
        "runtime/chosen_by": runtime.chosen_by,
    }


def _reuse(record: ExecutionRecord) -> dict[str, object]:
    if record.fingerprint is None:
        return {}
    return {
        "cache/policy": record.cache.policy,
        "cache/hit": record.cache.hit,
        "cache/source_execution_id": record.cache.source_execution_id,
        "cache/why": record.cache.why or None,
    }


def _limits(record: ExecutionRecord) -> dg.MetadataValue[Any]:
    """Asked and enforced side by side; a limit that nothing read back has an empty place there."""
    rows = []
    fields = dict(zip(limits_as_written(record.limits), Limits.__struct_fields__, strict=True))
    for key, asked in limits_as_written(record.limits).items():
        enforced = record.enforced.get(fields[key])
        rows.append(
            (
                key,
                str(asked),
                in_units(fields[key], enforced.value) if enforced else "",
                enforced.source if enforced else "",
            )
        )
    for name in sorted(set(record.enforced) - set(fields.values())):
        rows.append((name, "", in_units(name, record.enforced[name].value), record.enforced[name].source))
    return _table(("limit", "asked", "enforced", "read from"), rows)


def _isolation(record: ExecutionRecord) -> dict[str, object]:
    isolation = record.isolation
    if isolation is None:
        return {}
    rows = sorted(isolation.protections.items())
    return {
        "isolation": _table(("protection", "state"), rows),
        "isolation/mode": isolation.mode,
        "isolation/uid": str(isolation.uid),  # text: nobody wants a uid drawn over time
        "violations": record.violations if isinstance(record.violations, str) else dg.MetadataValue.json(record.violations),
    }


def _usage(record: ExecutionRecord) -> dict[str, object]:
    usage = record.usage
    cpu = [part.value for part in (usage.cpu_user_s, usage.cpu_system_s) if part is not None]
    peak_pids = usage.peak_pids

    def mib(measured: Measured | None) -> float | None:
        return None if measured is None else measured.value / _MIB

    return {
        "usage/wall_s": float(usage.wall_s.value) if usage.wall_s else None,
        "usage/cpu_s": float(sum(cpu)) if cpu else None,
        "usage/peak_memory_mib": mib(usage.peak_memory_bytes),
        "usage/peak_pids": int(peak_pids.value) if peak_pids else None,
        "usage/io_read_mib": mib(usage.io_read_bytes),
        "usage/io_write_mib": mib(usage.io_write_bytes),
        "usage/peak_scratch_mib": mib(usage.peak_scratch_bytes),
    }


def _guard(record: ExecutionRecord) -> dict[str, object]:
    guard = record.guard
    if guard is None:
        return {}
    facts: dict[str, object] = {
        "guard/before": dg.MetadataValue.timestamp(guard.before_at),
        "guard/afterwards": dg.MetadataValue.timestamp(guard.after_at) if guard.after_at else guard.why_not_after or None,
        "guard/findings": len(guard.findings),
    }
    if guard.findings:
        facts["guard"] = _table(("verdict", "target", "what"), [(one.verdict, one.target, one.what) for one in guard.findings])
    return facts


def _claims(claimed: Mapping[str, Any]) -> dict[str, object]:
    """What the analysis says of itself, as text, numbers and truth values only: no links, no paths, no Markdown."""
    shown: dict[str, object] = {}
    for name, value in list(claimed.items())[:MAX_CLAIMS]:
        shown[f"analysis/{name}"] = value if isinstance(value, bool | int | float) else str(value)[:MAX_CLAIM_CHARS]
    if len(claimed) > MAX_CLAIMS:
        shown["analysis"] = f"{len(claimed) - MAX_CLAIMS} further values are in the record."
    return shown
