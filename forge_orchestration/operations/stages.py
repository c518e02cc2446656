"""The stages of an analysis one after the other, each with the very outputs of those before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from forge_orchestration.executions import upstream
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec

Run = Callable[[AnalysisSpec], ExecutionRecord]


def run_stages(specs: Sequence[AnalysisSpec], run: Run) -> list[ExecutionRecord]:
    """Run each stage with what this very call has made, not with what is the latest by then; returns the records.

    Behind the first that does not succeed nothing is run: it is the last of the list.
    """
    records: list[ExecutionRecord] = []
    made: dict[str, ExecutionRecord] = {}
    for spec in specs:
        record = run(with_outputs_of(spec, made))
        records.append(record)
        if not record.succeeded:
            break
        made[spec.name] = record
    return records


def with_outputs_of(spec: AnalysisSpec, made: Mapping[str, ExecutionRecord]) -> AnalysisSpec:
    """The request with the executions `made`, by analysis, in the place of the latest."""
    sources = {}
    for name, source in spec.inputs.items():
        record = made.get(upstream.analysis_of(source))
        sources[name] = source if record is None else upstream.output_of(record, source)
    return msgspec.structs.replace(spec, inputs=sources)
