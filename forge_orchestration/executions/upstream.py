"""Outputs of earlier executions as inputs, by content: what was collected is what is read, or nothing is.

`asset://NAME/OUTPUT` is an output of the latest execution of analysis NAME that succeeded (`asset://NAME` if it has one alone), and
`execution://ID/PATH` a file of that very one: what the first is resolved to, and what a record says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from forge_orchestration.errors import ForgeError, SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.record import ExecutionRecord, OutputFacts

ASSET, EXECUTION = "asset://", "execution://"


class Latest(Protocol):
    """Who knows what was executed."""

    def latest_success(self, analysis: str, dagster_run_id: str | None, partition: str | None = None) -> str | None:
        """Id of the latest execution of an analysis, as a whole or for a partition, that succeeded; of one Dagster run, or of all."""


def pinned(
    source: str, store: Latest, executions_dir: Path, dagster_run_ids: Sequence[str] = (), partition: str | None = None
) -> str:
    """`source` with the execution that it stands for now; any but `asset://…` as it is.

    Args:
        dagster_run_ids: What these runs have made comes first, in this order, before what is later of others.
        partition: Of an analysis that has partitions too, the same one is meant; of one that has none, all of it.

    Raises:
        SpecError: Nothing has succeeded yet, or it has no such output.
    """
    if not source.startswith(ASSET):
        return source
    name = analysis_of(source)
    found_ids = (store.latest_success(name, run_id, partition) for run_id in (*dagster_run_ids, None))
    execution_id = next((one for one in found_ids if one is not None), None)
    if execution_id is None:
        part = "" if partition is None else f" for partition '{partition}'"
        raise SpecError(
            f"Input {source} is not there yet: no execution of '{name[:80]}' has succeeded{part}.", "Run that one first."
        )
    return output_of(ExecutionFolder(executions_dir, execution_id).read_record(), source)


def analysis_of(source: str) -> str:
    """Name of the analysis that `asset://NAME/OUTPUT` is of; empty for anything else."""
    return source.removeprefix(ASSET).partition("/")[0] if source.startswith(ASSET) else ""


def output_of(record: ExecutionRecord, source: str) -> str:
    """The output that `asset://NAME/OUTPUT` stands for, of this very execution.

    Raises:
        SpecError: It has no such output.
    """
    output = source.removeprefix(ASSET).partition("/")[2]
    execution_id = record.execution_id
    declared = [one for one in record.outputs if one.name != one.path] or record.outputs
    found = [one for one in declared if output in ("", one.name)] or [one for one in record.outputs if output == one.path]
    if len(found) != 1:
        known = ", ".join(dict.fromkeys(one.name for one in declared)) or "none"
        raise SpecError(
            f"Input {source} is {len(found) or 'none'} of the outputs of execution {execution_id}, and must be one.",
            f"Name one: {ASSET}{analysis_of(source)}/OUTPUT. Its outputs: {known}.",
        )
    return f"{EXECUTION}{execution_id}/{found[0].path}"


def collected(source: str, executions_dir: Path) -> tuple[Path, OutputFacts]:
    """The file that `execution://ID/PATH` stands for, and what its record says of it.

    Raises:
        SpecError: There is no such execution, it has not succeeded, or it has no such output.
    """
    execution_id, _, path = source.removeprefix(EXECUTION).partition("/")
    record = _record(source, execution_id, executions_dir)
    for output in record.outputs:
        if output.path == path and record.succeeded:
            return executions_dir / execution_id / "outputs" / path, output
    why = "which has no such output" if record.succeeded else f"which has not succeeded: it is {record.status}"
    raise SpecError(f"Input {source} is of an execution {why}.")


def _record(source: str, execution_id: str, executions_dir: Path) -> ExecutionRecord:
    try:
        if "/" in execution_id or execution_id.startswith(".") or not execution_id:
            raise SpecError("no id")
        return ExecutionFolder(executions_dir, execution_id).read_record()
    except ForgeError:
        raise SpecError(f"Input {source} is of an execution that is not there.", "See: forge executions list") from None
