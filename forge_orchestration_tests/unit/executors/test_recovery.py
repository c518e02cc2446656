"""The look at every start: what it finds, what it leaves alone, and that it never closes what somebody still holds."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id
from forge_orchestration.executions.store import Store
from forge_orchestration.executors import recovery
from forge_orchestration.executors.recovery import TRIAL, Reconciled, Recovery, one_at_a_time, recover_meanwhile
from forge_orchestration.model.guard import GuardFacts
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.sandbox import identity, linux
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.settings import Settings

DEAD = (2**22 + 5, 17)
ALIVE = (os.getpid(), linux.start_time(os.getpid()) or 0)


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store(settings.store_path)


@pytest.fixture
def site(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> CgroupSite:
    """Folders in the place of what is the host's."""
    monkeypatch.setattr(identity, "CLAIMS", tmp_path / "claims")
    monkeypatch.setattr("forge_orchestration.executors.admission.LEDGERS", tmp_path / "ledgers")
    (tmp_path / "claims").mkdir()
    (tmp_path / "groups/forge/executions").mkdir(parents=True)
    names = ("freezer", "memory", "cpu", "cpuacct", "pids")
    return CgroupSite(version=1, mounts=dict.fromkeys(names, str(tmp_path / "groups")), parent="forge")


def begun(store: Store, settings: Settings, controller: tuple[int, int], status: Status = Status.RUNNING) -> ExecutionFolder:
    folder = ExecutionFolder(settings.executions_dir, new_execution_id())
    record = ExecutionRecord(execution_id=folder.id, analysis="a", status=status, folder=str(folder.path))
    store.begin(record, *controller)
    folder.create()
    folder.write_record(record)
    return folder


def ended(store: Store, settings: Settings) -> ExecutionFolder:
    """Its record and row are final; its controller is gone."""
    folder = begun(store, settings, DEAD)
    record = ExecutionRecord(
        execution_id=folder.id, analysis="a", status=Status.SUCCEEDED, end_reason=EndReason.COMPLETED, folder=str(folder.path)
    )
    folder.write_record(record)
    store.save(record)
    return folder


def test_nothing_is_found_where_all_have_ended_or_live(store: Store, settings: Settings, site: CgroupSite) -> None:
    begun(store, settings, ALIVE)
    ended(store, settings)
    looked = Recovery(store, settings, site)
    assert looked.find() == set() and looked.report.alive == 1
    assert recover_meanwhile(store, settings, site) is None


def test_one_whose_controller_is_dead_is_found(store: Store, settings: Settings, site: CgroupSite) -> None:
    folder = begun(store, settings, DEAD)
    assert Recovery(store, settings, site).find() == {folder.id}


@pytest.mark.parametrize("what", ["workspace", "group", "claim"])
def test_what_is_left_of_one_that_has_ended_is_found_and_removed(
    store: Store, settings: Settings, site: CgroupSite, tmp_path: Path, what: str
) -> None:
    folder = ended(store, settings)
    path = {
        "workspace": settings.scratch_dir / folder.id, "group": tmp_path / "groups/forge/executions" / folder.id,
        "claim": tmp_path / "claims/1879987654",
    }[what]  # fmt: skip
    path.write_text(folder.id) if what == "claim" else path.mkdir()
    looked = Recovery(store, settings, site)
    dead = looked.find()
    assert dead == {folder.id}
    looked.recover(dead)
    assert not path.exists()
    assert looked.report == Reconciled(removed=[f"leftovers of {folder.id}"])
    record = folder.read_record()
    assert record.end_reason is EndReason.COMPLETED and record.cleanup.finished_at is not None


def test_what_is_another_deployments_is_not_found(store: Store, settings: Settings, site: CgroupSite, tmp_path: Path) -> None:
    (tmp_path / "groups/forge/executions" / new_execution_id()).mkdir()
    (tmp_path / "claims/1879987654").write_text(new_execution_id())
    assert Recovery(store, settings, site).find() == set()


def test_one_that_a_supervisor_holds_is_alive_whatever_is_written(store: Store, settings: Settings, site: CgroupSite) -> None:
    """It has begun, and has not said so yet."""
    folder = begun(store, settings, DEAD, Status.QUEUED)
    looked = Recovery(store, settings, site)
    with folder.locked():
        looked.recover(looked.find())
    assert looked.report == Reconciled(alive=1)
    assert folder.read_record().status is Status.QUEUED


def test_outputs_that_were_collected_are_kept_and_half_of_one_is_not(store: Store, settings: Settings, site: CgroupSite) -> None:
    folder = begun(store, settings, DEAD, Status.COLLECTING)
    (folder.outputs / "plots").mkdir()
    (folder.outputs / "plots/a.txt").write_text("whole")
    (folder.path / ".output.partial").write_text("ha")
    looked = Recovery(store, settings, site)
    looked.recover(looked.find())
    record = folder.read_record()
    assert record.end_reason is EndReason.CONTROLLER_LOST
    assert [(one.path, one.bytes, one.sha256) for one in record.outputs] == [
        ("plots/a.txt", 5, hashlib.sha256(b"whole").hexdigest())
    ]
    assert sorted(os.listdir(folder.path)) == ["lock", "outputs", "record.json"]


def test_a_claim_of_a_supervisor_that_had_no_execution_yet_is_given_back(
    store: Store, settings: Settings, site: CgroupSite, tmp_path: Path
) -> None:
    (tmp_path / "claims/1879987654").write_text("standby 4194304")
    thread = recover_meanwhile(store, settings, site)
    assert thread is not None
    thread.join(20)
    assert os.listdir(tmp_path / "claims") == []


def test_two_at_once_leave_it_to_one(store: Store, settings: Settings, site: CgroupSite) -> None:
    folder = begun(store, settings, DEAD)
    with one_at_a_time(settings, wait=True) as alone:
        thread = recover_meanwhile(store, settings, site)
        assert alone and thread is not None
        thread.join(20)
        assert folder.read_record().status is Status.RUNNING
    thread = recover_meanwhile(store, settings, site)
    assert thread is not None
    thread.join(20)
    assert folder.read_record().end_reason is EndReason.CONTROLLER_LOST
    assert store.status(folder.id) == "lost"


def test_many_threads_that_recover_at_once_close_each_once(store: Store, settings: Settings, site: CgroupSite) -> None:
    ids = {begun(store, settings, DEAD).id for _ in range(20)}
    looks = [Recovery(store, settings, site) for _ in range(4)]
    threads = [threading.Thread(target=looked.recover, args=(ids,)) for looked in looks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    closed = [one for looked in looks for one in looked.report.closed]
    assert sorted(closed) == sorted(ids)
    assert not [problem for looked in looks for problem in looked.report.problems]


def test_a_record_that_cannot_be_read_does_not_stop_the_look(store: Store, settings: Settings, site: CgroupSite) -> None:
    torn, good = begun(store, settings, DEAD), begun(store, settings, DEAD)
    torn.record_path.write_text("{")
    looked = Recovery(store, settings, site)
    looked.recover(looked.find())
    assert looked.report.closed == [good.id]
    assert len(looked.report.problems) == 1 and torn.id in looked.report.problems[0]


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.SUCCEEDED])
def test_a_guarded_one_whose_controller_is_gone_says_that_nobody_looked_afterwards(
    store: Store, settings: Settings, site: CgroupSite, status: Status
) -> None:
    """Unless nothing of it ran. With a final record the controller was lost at its second look."""
    folder = begun(store, settings, DEAD)
    reason = EndReason.COMPLETED if status.is_final else None
    started = None if status is Status.QUEUED else 5.0
    guard = GuardFacts(databases=["lab"], paths=["/srv/ref"], before_at=4.0)
    changes = {"guard": guard, "status": status, "end_reason": reason, "started_at": started}
    folder.write_record(msgspec.structs.replace(folder.read_record(), **changes))
    for _ in range(2):
        looked = Recovery(store, settings, site)
        looked.recover(looked.find())
        assert looked.report.problems == []
    record = folder.read_record()
    assert record.guard is not None and record.guard.after_at is None
    if status is Status.QUEUED:
        assert (record.suspect, record.guard.findings, record.guard.why_not_after) == (False, [], "")
    else:
        assert record.suspect and record.guard.why_not_after == "the controller was lost"
        what = "not looked at afterwards: the controller was lost"
        assert [(one.target, one.what, one.verdict) for one in record.guard.findings] == [
            ("lab", what, "suspect"), ("/srv/ref", what, "suspect"),
        ]  # fmt: skip
    assert store.status(folder.id) == ("succeeded" if status.is_final else "lost")


def test_which_controllers_live() -> None:
    assert recovery.controller_lives(ALIVE)
    assert not recovery.controller_lives((ALIVE[0], 1))
    assert not recovery.controller_lives(None)


def test_a_trial_that_was_cut_short_is_removed_and_no_execution(store: Store, settings: Settings, site: CgroupSite) -> None:
    folder = begun(store, settings, DEAD)
    folder.write_record(msgspec.structs.replace(folder.read_record(), analysis=TRIAL))
    looked = Recovery(store, settings, site)
    looked.recover(looked.find())
    assert looked.report.removed == [f"trial {folder.id}"] and looked.report.closed == looked.report.problems == []
    assert not folder.path.exists() and store.list(limit=10) == []
