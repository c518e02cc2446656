"""Tables and records for people: with rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence

from forge_orchestration.model.guard import GuardFacts
from forge_orchestration.model.publication import PublishedFacts
from forge_orchestration.model.record import CheckpointFacts, ExecutionRecord, Measured
from forge_orchestration.units import format_bytes, format_seconds


def print_table(rows: Sequence[Mapping[str, object]], title: str = "") -> None:
    """Rows of the same columns; tab-separated with a header line when piped."""
    if not rows:
        print("nothing to show", file=sys.stderr)
        return
    columns = list(rows[0])
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for row in rows:
            print("\t".join(_text(row[column]).replace("\t", " ") for column in columns))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title or None, header_style="bold")
    for row in rows:
        table.add_row(*(Text(_text(row[column])) for column in columns))  # Text: an analysis' words are no markup
    Console().print(table)


def print_record(record: ExecutionRecord) -> None:
    """What a scientist wants to see of one execution."""
    print(f"\n{record.analysis}: {record.status}" + (f" ({record.end_reason})" if record.end_reason else ""))
    print(f"  {record.message}" if record.message else "")
    for title, lines in _sections(record):
        print(f"\n{title}")
        for name, value in lines:
            print(f"  {name:<22} {value}")


def _sections(record: ExecutionRecord) -> Iterable[tuple[str, list[tuple[str, str]]]]:
    runtime = record.runtime
    yield (
        "Execution",
        [
            ("id", record.execution_id),
            *([("partition", record.partition)] if record.partition is not None else []),
            (
                "runtime",
                f"{runtime.name} (content {runtime.content_digest[:12]}, chosen by {runtime.chosen_by})" if runtime else "-",
            ),
            ("command", " ".join(record.command)),
            *_reused(record),
            ("started", _when(record.started_at)),
            ("ended", _when(record.ended_at)),
            *([("Dagster run", record.dagster_run_id)] if record.dagster_run_id is not None else []),
            ("folder", record.folder),
            ("record", f"{record.folder}/record.json"),
        ],
    )
    if record.enforced:
        yield (
            "Enforced, as read back",
            [(name, f"{_limit(name, one.value)}  ({one.source})") for name, one in record.enforced.items()],
        )
    if record.isolation:
        protections = record.isolation.protections
        on = [name for name, state in protections.items() if state == "on"]
        yield (
            "Isolation",
            [("mode", record.isolation.mode), ("on", ", ".join(on))]
            + [(name, state) for name, state in protections.items() if state != "on"],
        )
    used = [
        (name, _limit(name, one.value))
        for name in record.usage.__struct_fields__
        if isinstance(one := getattr(record.usage, name), Measured)
    ]
    if used:
        yield "Used", used
    yield "Logs", [(name, f"{log.path} ({format_bytes(log.bytes)})") for name, log in record.logs.items()]
    if record.checks:
        yield (
            "Checks, as the analysis reports them",
            [(one.name, check_sentence("", one.passed, one.message)) for one in record.checks],
        )
    if record.outputs:
        yield "Outputs", [(one.name, f"{record.folder}/outputs/{one.path} ({format_bytes(one.bytes)})") for one in record.outputs]
    if record.published:
        yield "Published", [(one.name, published_sentence(one)) for one in record.published]
    if record.guard is not None:
        yield "Guarded", _guarded(record.guard)
    if record.rejected_outputs:
        yield "Not kept", [(one.path, one.why) for one in record.rejected_outputs]


def _reused(record: ExecutionRecord) -> list[tuple[str, str]]:
    cache = record.cache
    source = [("result of", cache.source_execution_id)] if cache.source_execution_id is not None else []
    return [*source, *([("reuse", cache.why)] if cache.why else []), *_checkpoint(record.checkpoint)]


def _checkpoint(facts: CheckpointFacts | None) -> list[tuple[str, str]]:
    if facts is None:
        return []
    lines = (
        [("went on from", f"execution {facts.resumed_from} ({format_bytes(facts.resumed_bytes)})")] if facts.resumed_from else []
    )
    lines += [("checkpoint", "kept: run it again, and it goes on")] if facts.kept else []
    return lines + ([("checkpoint", facts.why)] if facts.why else [])


def published_sentence(facts: PublishedFacts) -> str:
    """`results.scores (20 rows)`, or why not."""
    if facts.at is None:
        return f"NOT published to {facts.target}: {facts.error}"
    return facts.target if facts.rows is None else f"{facts.target} ({facts.rows} row{'' if facts.rows == 1 else 's'})"


def check_sentence(name: str, passed: bool, message: str) -> str:
    """`enough_cells passed: 700 cells`."""
    said = f"{name} {'passed' if passed else 'failed'}".lstrip()
    return f"{said}: {message}" if message else said


def _guarded(guard: GuardFacts) -> list[tuple[str, str]]:
    afterwards = _when(guard.after_at) if guard.after_at else guard.why_not_after or "-"
    looked_at = [f"database {name} ({guard.tier})" for name in guard.databases]
    if guard.paths:
        looked_at.append(f"{guard.files} files ({format_bytes(guard.bytes)}) in {', '.join(guard.paths)}")
    return [
        ("looked at", "; ".join(looked_at)),
        ("before", _when(guard.before_at)),
        ("afterwards", afterwards),
        *((finding.verdict, f"{finding.target}: {finding.what}") for finding in guard.findings),
    ]


def _limit(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return format_bytes(value)
    return format_seconds(round(value, 3)) if name.endswith("_s") else f"{value:g}"


def _when(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if moment else "-"


def _text(value: object) -> str:
    return "" if value is None else str(value)
