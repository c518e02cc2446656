"""`executions_frame`: what dtypes it has, whatever is in it, and that a row says what the record says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

import forge_orchestration
from forge_orchestration.errors import SpecError
from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id
from forge_orchestration.metrics.frame import DTYPES
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.settings import Settings
from forge_orchestration_tests.unit.executions.test_statistics import record
from forge_orchestration_tests.unit.metrics.conftest import HOSTILE, Index


@pytest.fixture(autouse=True)
def home(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(settings.home))


def dtypes(frame: pd.DataFrame) -> dict[str, str]:
    return {name: str(kind) for name, kind in frame.dtypes.items()}


def test_an_empty_one_has_its_columns_and_dtypes() -> None:
    frame = forge_orchestration.executions_frame()
    assert len(frame) == 0 and dtypes(frame) == DTYPES


def test_a_row_says_what_the_record_says(index: Index) -> None:
    index(record(5, EndReason.MEMORY, message=HOSTILE, suspect=True))
    frame = forge_orchestration.executions_frame()
    assert dtypes(frame) == DTYPES
    row = frame.iloc[0]
    assert (row.execution_id, row.analysis, row.runtime, row.status, row.end_reason) == (
        record(5).execution_id,
        "a",
        "r",
        "failed",
        "memory",
    )
    assert (row.message, bool(row.suspect), row.attempt, row.protections_off) == (HOSTILE, True, 1, "identity precedence")
    assert (row.queued_at, row.ended_at) == (pd.Timestamp(1005, unit="s", tz="UTC"), pd.Timestamp(1010, unit="s", tz="UTC"))
    assert (row.queue_s, row.wall_s, row.cpu_s, row.peak_memory_bytes, row.memory_limit_bytes) == (1.0, 4.0, 2.0, 50.0, 100.0)
    assert (row.memory_use_ratio, row.cpu_use_ratio, row.scratch_use_ratio) == (0.5, 0.25, 1.0)


def test_what_was_not_measured_is_missing_and_changes_no_dtype(index: Index) -> None:
    index(
        ExecutionRecord(
            execution_id=record().execution_id, analysis="a", status=Status.REFUSED, end_reason=EndReason.RUNTIME_UNHEALTHY
        )
    )
    frame = forge_orchestration.executions_frame()
    assert dtypes(frame) == DTYPES
    missing = [
        "runtime",
        "started_at",
        "wall_s",
        "memory_limit_bytes",
        "memory_use_ratio",
        "exit_code",
        "queue_s",
        "protections_off",
    ]
    assert frame[missing].isna().all(axis=None)


def test_filters(index: Index) -> None:
    index(
        *(
            record(number, EndReason.MEMORY if number % 2 else EndReason.COMPLETED, analysis="ab"[number // 2])
            for number in range(4)
        )
    )
    frame = forge_orchestration.executions_frame
    assert list(frame(analysis="a").execution_id) == [record(0).execution_id, record(1).execution_id]
    assert list(frame(status="failed").execution_id) == [record(1).execution_id, record(3).execution_id]
    assert list(frame(status="failed").index) == [0, 1]
    assert list(frame(analysis="b", status="succeeded").execution_id) == [record(2).execution_id]
    at = 1000.0 + 2
    for since in (
        datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(at, UTC).replace(tzinfo=None), "1970-01-01T00:16:42",
        "1970-01-01T01:16:42+01:00", pd.Timestamp(at, unit="s", tz="UTC"),
    ):  # fmt: skip
        assert list(frame(since=since).execution_id) == [record(2).execution_id, record(3).execution_id]
    assert len(frame(analysis="' OR 1=1 --")) == 0 and dtypes(frame(analysis="none")) == DTYPES


@pytest.mark.parametrize("wrong", [{"status": "fine"}, {"since": "yesterday-ish"}, {"since": object()}, {"since": float("nan")}])
def test_a_wrong_filter_is_a_sentence(wrong: dict) -> None:
    with pytest.raises(SpecError):
        forge_orchestration.executions_frame(**wrong)


def test_one_that_runs_is_as_its_record_says(settings: Settings, index: Index) -> None:
    folder = ExecutionFolder(settings.executions_dir, new_execution_id())
    folder.create()
    folder.write_record(ExecutionRecord(execution_id=folder.id, analysis="a", status=Status.RUNNING, started_at=5.0))
    index(ExecutionRecord(execution_id=folder.id, analysis="a"))
    frame = forge_orchestration.executions_frame(status="running")
    assert list(frame.execution_id) == [folder.id] and frame.started_at[0] == pd.Timestamp(5, unit="s", tz="UTC")
    assert len(forge_orchestration.executions_frame(status="queued")) == 0


def test_one_whose_folder_was_removed_is_not_in_it(settings: Settings, index: Index) -> None:
    from forge_orchestration.executions.store import Store

    index(record(1), record(2))
    Store(settings.store_path).forget(record(1).execution_id)
    assert list(forge_orchestration.executions_frame().execution_id) == [record(2).execution_id]


def test_every_column_is_documented() -> None:
    documented = Path(__file__).parents[3].joinpath("docs/metrics.md").read_text()
    assert [name for name in DTYPES if f"`{name}`" not in documented] == []
