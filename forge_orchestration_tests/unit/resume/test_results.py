"""How a result comes into another execution's folder: shared, and on the disk before anything says that it is there."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from pathlib import Path

import pytest

from forge_orchestration.executions import folder as folders
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord, OutputFacts
from forge_orchestration.resume import results

OLD, NEW = "20260102T030400001-9f86d081", "20260102T030400002-9f86d081"


@pytest.fixture
def old(tmp_path: Path) -> ExecutionRecord:
    """One whose outputs are there, one of them two folders down."""
    folder = ExecutionFolder(tmp_path, OLD)
    folder.create()
    outputs = []
    for path in ("a.txt", "b/c/d.txt"):
        file = folder.outputs / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
        outputs.append(OutputFacts(name=path, path=path, sha256=hashlib.sha256(path.encode()).hexdigest(), bytes=len(path)))
    return ExecutionRecord(
        execution_id=OLD, analysis="a", status=Status.SUCCEEDED, end_reason=EndReason.COMPLETED, outputs=outputs, ended_at=1.0
    )


@pytest.fixture
def without_clones(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A file system that has none, whatever this one has; what it was asked is kept."""
    asked: list[int] = []

    def refuse(fd: int, request: int, *_: object) -> int:
        asked.append(request)
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    monkeypatch.setattr(results, "_without_clones", set())
    return asked


def test_every_folder_of_an_output_is_on_the_disk_before_the_record(
    old: ExecutionRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    there: list[bool] = []
    folder, store = ExecutionFolder(tmp_path, NEW), Store(tmp_path / "store.db")
    folder.create()
    made = results.reuse_result(old, ExecutionRecord(execution_id=NEW, analysis="a"), folder, store, "")
    assert made.succeeded and made.cache.hit and made.outputs == old.outputs
    assert [(folder.outputs / one.path).read_text() for one in old.outputs] == ["a.txt", "b/c/d.txt"]

    def sync(path: Path) -> None:
        synced.append(path)
        there.append(folder.record_path.exists())

    monkeypatch.setattr(folders, "sync_folder", sync)
    folder.write_record(made)
    assert sorted(synced[:-1]) == [folder.outputs, folder.outputs / "b", folder.outputs / "b/c"] and not any(there[:-1])
    assert synced[-1] == folder.path and there[-1]
    store.close()


def test_a_file_system_without_clones_is_asked_once(old: ExecutionRecord, tmp_path: Path, without_clones: list[int]) -> None:
    folder, store = ExecutionFolder(tmp_path, NEW), Store(tmp_path / "store.db")
    folder.create()
    results.reuse_result(old, ExecutionRecord(execution_id=NEW, analysis="a"), folder, store, "")
    assert len(without_clones) == 1
    for output in old.outputs:
        assert os.path.samefile(tmp_path / OLD / "outputs" / output.path, folder.outputs / output.path), "a second name"
    store.close()


def test_what_is_gone_is_no_result(old: ExecutionRecord, tmp_path: Path, without_clones: list[int]) -> None:
    folder, store = ExecutionFolder(tmp_path, NEW), Store(tmp_path / "store.db")
    folder.create()
    (tmp_path / OLD / "outputs/a.txt").unlink()
    with pytest.raises(results.ResultGone):
        results.reuse_result(old, ExecutionRecord(execution_id=NEW, analysis="a"), folder, store, "")
    store.close()
