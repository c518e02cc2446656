"""An execution once more: the very request, with the analysis' files as they were kept, and with what it had saved."""

from __future__ import annotations

from pathlib import Path

import msgspec

from forge_orchestration.errors import SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.operations.retry_with_more import repeated
from forge_orchestration.settings import Settings


def request_of(record: ExecutionRecord, settings: Settings) -> AnalysisSpec:
    """What was asked for, with the copy of the analysis' files that was run in the place of those that may have changed since.

    Raises:
        SpecError: The execution took another's result, or what was asked for is not known any more.
    """
    folder = ExecutionFolder(settings.executions_dir, record.execution_id)
    if record.cache.source_execution_id is not None:
        raise SpecError(
            f"Execution {record.execution_id} ran nothing: it took the result of {record.cache.source_execution_id}.",
            "Name that one.",
        )
    try:
        spec = msgspec.json.decode(folder.request.read_bytes(), type=AnalysisSpec)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise SpecError(f"What execution {record.execution_id} was asked to do is not known any more: {error}.") from error
    if spec.folder is None:
        return spec
    if not folder.analysis.is_dir():
        raise SpecError(f"The copy of the analysis' files that execution {record.execution_id} had is gone.")
    inputs = {name: _kept(source, Path(spec.folder), folder.analysis) for name, source in spec.inputs.items()}
    return msgspec.structs.replace(spec, folder=str(folder.analysis), inputs=inputs)


def _kept(source: str, folder: Path, copy: Path) -> str:
    """An input that lies among the analysis' files is one of those that were copied."""
    path = Path(source)
    inside = path.is_absolute() and path.is_relative_to(folder) and (copy / path.relative_to(folder)).exists()
    return str(copy / path.relative_to(folder)) if inside else source


def resumed(record: ExecutionRecord, settings: Settings) -> AnalysisSpec:
    """The request to go on with an execution that did not succeed.

    Raises:
        SpecError: It runs, or it has succeeded, or what was asked for is not known any more.
    """
    if not record.status.is_final:
        raise SpecError(f"Execution {record.execution_id} has not ended: it is {record.status}.")
    if record.succeeded:
        raise SpecError(f"Execution {record.execution_id} has succeeded: nothing is left to be done.")
    again = repeated(request_of(record, settings), record)
    return msgspec.structs.replace(again, dagster_run_id=None, dagster_step_key=None)
