"""Which execution an `asset://` input stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge_orchestration.errors import SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.upstream import collected, pinned
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord, OutputFacts

OURS, PARENTS, LATEST = (f"20260102T03040567{number}-9f86d081" for number in range(3))
DIGEST = "0" * 64


class Known:
    """Executions by Dagster run (`latest`: of all), and by run and partition (`RUN_of_KEY`)."""

    def __init__(self, **by_run: str) -> None:
        self.by_run = by_run

    def latest_success(self, analysis: str, dagster_run_id: str | None, partition: str | None = None) -> str | None:
        run = dagster_run_id or "latest"
        return self.by_run.get(f"{run}_of_{partition}", self.by_run.get(run)) if analysis == "cells" else None


@pytest.fixture
def executions(tmp_path: Path) -> Path:
    for execution_id in (OURS, PARENTS, LATEST):
        write(tmp_path, execution_id, {"table": "t.csv", "plot": "p.png"})
    return tmp_path


def write(executions: Path, execution_id: str, outputs: dict[str, str], status: Status = Status.SUCCEEDED) -> None:
    folder = ExecutionFolder(executions, execution_id)
    folder.create()
    facts = [OutputFacts(name=name, path=path, sha256=DIGEST, bytes=1) for name, path in outputs.items()]
    folder.write_record(
        ExecutionRecord(
            execution_id=execution_id, analysis="cells", executor="local", host="h", command=("c",), queued_at=1.0, folder=str(folder.path),
            status=status, end_reason=EndReason.COMPLETED, outputs=facts,
        )
    )  # fmt: skip


def test_the_runs_own_comes_first_then_its_parents(executions: Path) -> None:
    known = Known(ours=OURS, parent=PARENTS, latest=LATEST)
    assert pinned("asset://cells/table", known, executions, ["ours", "parent"]) == f"execution://{OURS}/t.csv"
    assert pinned("asset://cells/table", known, executions, ["new", "parent"]) == f"execution://{PARENTS}/t.csv"
    assert pinned("asset://cells/table", known, executions, ["new"]) == f"execution://{LATEST}/t.csv"
    assert pinned("asset://cells/p.png", known, executions) == f"execution://{LATEST}/p.png"


def test_the_same_partition_comes_before_what_has_none(executions: Path) -> None:
    known = Known(ours=LATEST, latest=LATEST, ours_of_k=OURS, latest_of_k=PARENTS)
    assert pinned("asset://cells/table", known, executions, ["ours"], "k") == f"execution://{OURS}/t.csv"
    assert pinned("asset://cells/table", known, executions, ["new"], "k") == f"execution://{PARENTS}/t.csv"
    assert pinned("asset://cells/table", known, executions, ["new"], "other") == f"execution://{LATEST}/t.csv"
    assert pinned("asset://cells/table", known, executions, ["ours"]) == f"execution://{LATEST}/t.csv"
    with pytest.raises(SpecError, match="has succeeded for partition 'other'"):
        pinned("asset://cells/table", Known(latest_of_k=PARENTS), executions, (), "other")


def test_any_other_source_stays_as_it_is(executions: Path) -> None:
    for source in ("/data/x", f"execution://{OURS}/t.csv", "package://x/y"):
        assert pinned(source, Known(), executions) == source


@pytest.mark.parametrize(
    ("source", "said"),
    [("asset://cells", "is 2 of the outputs of"), ("asset://cells/none", "is none of the outputs of"), ("asset://other/x", "no execution of 'other'"), ("asset://", "no execution of ''")],
)  # fmt: skip
def test_what_is_not_there(executions: Path, source: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        pinned(source, Known(latest=LATEST), executions)


def test_one_declared_output_needs_no_name(tmp_path: Path) -> None:
    write(tmp_path, OURS, {"result": "result.json", "extra.txt": "extra.txt"})
    assert pinned("asset://cells", Known(latest=OURS), tmp_path) == f"execution://{OURS}/result.json"


def test_only_of_what_has_succeeded(tmp_path: Path) -> None:
    write(tmp_path, OURS, {"table": "t.csv"})
    write(tmp_path, PARENTS, {"table": "t.csv"}, Status.FAILED)
    path, facts = collected(f"execution://{OURS}/t.csv", tmp_path)
    assert (path, facts.sha256) == (tmp_path / OURS / "outputs" / "t.csv", DIGEST)
    with pytest.raises(SpecError, match="it is failed"):
        collected(f"execution://{PARENTS}/t.csv", tmp_path)
    with pytest.raises(SpecError, match="no such output"):
        collected(f"execution://{OURS}/../record.json", tmp_path)
