"""`forge gc`: what a crash left is put right; what lives, and what is not ours, is left alone."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NoReturn

import pytest

from forge_orchestration.engine import Engine
from forge_orchestration.errors import HostError
from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.operations.reconcile import Reconciled, reconcile
from forge_orchestration.sandbox import linux
from forge_orchestration.settings import Settings

DEAD = (2**22 + 5, 17)


@pytest.fixture
def engine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Engine:
    # claims, places and groups are the host's: other tests' executions are at work there
    monkeypatch.setattr("forge_orchestration.executors.admission.LEDGERS", settings.home / "no places")
    monkeypatch.setattr("forge_orchestration.sandbox.identity.CLAIMS", settings.home / "no claims")
    monkeypatch.setattr("forge_orchestration.operations.reconcile.find_site", no_site)
    return Engine(settings)


def no_site(parent: str) -> NoReturn:
    raise HostError("No cgroup can be made here.")


def left(
    engine: Engine, status: Status = Status.RUNNING, controller: tuple[int, int] | None = DEAD, *, row: bool = True
) -> ExecutionFolder:
    """An execution as a crash leaves it."""
    folder = ExecutionFolder(engine.settings.executions_dir, new_execution_id())
    record = ExecutionRecord(execution_id=folder.id, analysis="a", status=status, folder=str(folder.path))
    folder.create()
    folder.write_record(record)
    if row:
        engine.store.save(record)
    if controller:
        engine.store.claim(folder.id, *controller)
    return folder


def test_nothing_to_do(engine: Engine) -> None:
    assert reconcile(engine) == Reconciled()


@pytest.mark.parametrize("status", [status for status in Status if not status.is_final])
def test_one_whose_supervisor_and_controller_are_gone_is_closed(engine: Engine, status: Status) -> None:
    folder = left(engine, status)
    report = reconcile(engine)
    assert report.closed == [folder.id]
    record = folder.read_record()
    assert (record.status, record.end_reason) == (Status.LOST, EndReason.CONTROLLER_LOST)
    assert record.message and record.ended_at and record.cleanup.finished_at
    assert engine.store.unfinished() == []
    assert reconcile(engine) == Reconciled()


def test_one_whose_controller_lives_is_left_alone(engine: Engine) -> None:
    folder = left(engine, controller=(os.getpid(), linux.start_time(os.getpid()) or 0))
    assert reconcile(engine).alive == 1
    assert folder.read_record().status is Status.RUNNING


def test_another_process_with_the_controllers_pid_is_not_it(engine: Engine) -> None:
    left(engine, controller=(os.getpid(), 1))
    assert len(reconcile(engine).closed) == 1


def test_a_row_that_was_not_brought_up_to_date(engine: Engine) -> None:
    folder = left(engine)
    folder.write_record(
        ExecutionRecord(execution_id=folder.id, analysis="a", status=Status.SUCCEEDED, end_reason=EndReason.COMPLETED)
    )
    assert reconcile(engine).indexed == [folder.id]
    assert engine.store.list()[0]["status"] == "succeeded"


def test_a_lost_store_is_rebuilt_from_the_records(engine: Engine) -> None:
    folders = [left(engine, Status.SUCCEEDED, None, row=False) for _ in range(3)]
    assert sorted(reconcile(engine).indexed) == sorted(folder.id for folder in folders)
    assert engine.store.ids() == {folder.id for folder in folders}


def test_one_that_never_began_is_forgotten(engine: Engine) -> None:
    folder = left(engine)
    folder.record_path.unlink()
    assert len(reconcile(engine).removed) == 1
    assert not folder.path.exists() and engine.store.ids() == set()


def test_a_record_that_cannot_be_read_is_for_a_person(engine: Engine) -> None:
    folder = left(engine)
    folder.record_path.write_text("{")
    report = reconcile(engine)
    assert len(report.problems) == 1 and folder.id in report.problems[0]
    assert folder.record_path.read_text() == "{"


def test_one_problem_does_not_keep_the_rest_from_being_put_right(engine: Engine) -> None:
    left(engine).record_path.write_text("{")
    good = left(engine)
    assert reconcile(engine).closed == [good.id]


def test_what_lies_in_scratch_is_removed_and_templates_are_kept(engine: Engine) -> None:
    scratch = engine.settings.scratch_dir
    folder = left(engine)
    (scratch / "templates").mkdir()
    (scratch / "templates" / "1.img").touch()
    (scratch / folder.id / "outputs").mkdir(parents=True)
    stray = new_execution_id()
    (scratch / stray).mkdir()
    reconcile(engine)
    assert os.listdir(scratch) == ["templates"] and os.listdir(scratch / "templates") == ["1.img"]
    assert folder.read_record().cleanup.scratch_bytes_freed >= 4096


def test_the_scratch_of_one_that_lives_is_kept(engine: Engine) -> None:
    folder = left(engine, controller=(os.getpid(), linux.start_time(os.getpid()) or 0))
    (engine.settings.scratch_dir / folder.id).mkdir()
    reconcile(engine)
    assert (engine.settings.scratch_dir / folder.id).is_dir()


def test_torn_files_are_removed(engine: Engine) -> None:
    folder = left(engine)
    (folder.path / ".record.json.12345").write_text("{")
    reconcile(engine)
    assert sorted(os.listdir(folder.path)) == ["lock", "outputs", "record.json"]


def test_unfinished_builds_are_removed(engine: Engine) -> None:
    building = engine.settings.runtimes_dir / ".building"
    (building / "forge-python.abc" / "prefix").mkdir(parents=True)
    (building / "forge-python.lock").touch()
    reconcile(engine)
    assert os.listdir(building) == ["forge-python.lock"]


def test_unfinished_images_are_removed_when_nobody_can_be_at_work_on_them(engine: Engine) -> None:
    templates = engine.settings.scratch_dir / "templates"
    templates.mkdir()
    for name, age_s in (("old.new", 3600), ("young.new", 1), ("1000.img", 3600)):
        (templates / name).touch()
        os.utime(templates / name, (time.time() - age_s,) * 2)
    assert reconcile(engine).removed == ["unfinished image old.new"]
    assert sorted(os.listdir(templates)) == ["1000.img", "young.new"]


def test_a_runtime_whose_name_begins_like_anothers_is_another(engine: Engine) -> None:
    building = engine.settings.runtimes_dir / ".building"
    for name in ("forge.abcd1234", "forge.more.abcd1234", "forge.abcd1234.old"):
        (building / name).mkdir(parents=True)
    (building / "forge.lock").touch()
    reconcile(engine)
    assert sorted(os.listdir(building)) == ["forge.lock", "forge.more.abcd1234"]


@pytest.mark.parametrize("name", ["..", "notes.txt", "-rf", "a b", "ö"])
def test_what_is_not_ours_is_left_alone(engine: Engine, name: str) -> None:
    for parent in (engine.settings.executions_dir, engine.settings.scratch_dir):
        path: Path = parent / name if name != ".." else parent / "..x"
        path.mkdir()
    report = reconcile(engine)
    assert not report.removed
    assert len(os.listdir(engine.settings.executions_dir)) == len(os.listdir(engine.settings.scratch_dir)) == 1
