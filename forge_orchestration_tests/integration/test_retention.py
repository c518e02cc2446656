"""What `forge gc` removes of ended executions, and what it never does."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.engine import Engine
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import CacheFacts, ExecutionRecord, InputFacts
from forge_orchestration.operations.retention import Rules, pin, removable, remove, unpin
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import Forge

pytestmark = pytest.mark.together

DAY = 86_400.0
NOW = 2_000_000_000.0
KIB64 = 65_536


class Home:
    """Executions that were never run, with folders and rows like any other."""

    def __init__(self, path: Path) -> None:
        self.engine = Engine(load_settings(path))
        self.path, self.count = path, 0

    def add(self, days: float, analysis: str = "a", *, reads: str | None = None, partition: str | None = None,
            reason: EndReason | None = EndReason.COMPLETED, size: int = KIB64, takes: str | None = None) -> str:  # fmt: skip
        """One that ended so many days ago, and left a file; returns its id."""
        self.count += 1
        folder = ExecutionFolder(self.engine.settings.executions_dir, f"20260102T{self.count:09}-9f86d081")
        folder.create()
        (folder.outputs / "file").write_bytes(os.urandom(size))
        inputs = [] if reads is None else [InputFacts(name="x", source=f"execution://{reads}/file", sha256="s", bytes=1)]
        record = ExecutionRecord(
            execution_id=folder.id, analysis=analysis, partition=partition, inputs=inputs, folder=str(folder.path), queued_at=1.0,
            status=reason.status if reason else Status.RUNNING, end_reason=reason, ended_at=NOW - days * DAY if reason else None,
            cache=CacheFacts(policy="use", hit=takes is not None, source_execution_id=takes),
        )  # fmt: skip
        folder.write_record(record)
        self.engine.store.save(record)
        return folder.id

    def share(self, source: str, target: str) -> None:
        folder = self.engine.settings.executions_dir
        (folder / target / "outputs" / "file").unlink()
        os.link(folder / source / "outputs" / "file", folder / target / "outputs" / "file")

    def going(self, **rules: float) -> list[str]:
        return [one.what for one in removable(self.engine, msgspec.convert(rules, Rules), NOW)]

    def pin(self, execution_id: str) -> None:
        pin(ExecutionFolder(self.engine.settings.executions_dir, execution_id), "x")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_by_age_but_the_last_result_of_each(home: Home) -> None:
    oldest, old, new = home.add(100), home.add(95), home.add(1)
    part_a, part_b = home.add(100, partition="a"), home.add(99, partition="b")
    failed = home.add(100, reason=EndReason.MEMORY)
    assert home.going(older_than_s=90 * DAY) == [oldest, failed, old]
    assert home.going(older_than_s=90 * DAY, keep_last=2) == [oldest, failed]
    assert set(home.going(older_than_s=90 * DAY, keep_last=0)) == {oldest, failed, part_a, part_b, old}
    assert home.going(older_than_s=0.5 * DAY, keep_last=0)[-1] == new
    assert home.going(older_than_s=200 * DAY) == []


def test_by_size_the_oldest_first(home: Home) -> None:
    ids = [home.add(days) for days in (9, 8, 7, 6)]
    each = sum(one.bytes for one in removable(home.engine, Rules(max_bytes=0, keep_last=0), NOW)) // 4
    assert home.going(max_bytes=each * 4) == []
    assert home.going(max_bytes=each * 4 - 1) == ids[:1]
    assert home.going(max_bytes=each * 2) == ids[:2]
    assert home.going(max_bytes=0) == ids[:3], "the last result stays"
    assert home.going(max_bytes=0, keep_last=0) == ids


def test_never_what_is_pinned_runs_or_is_read(home: Home) -> None:
    read_by_read, pinned, running = home.add(100), home.add(100, "p"), home.add(100, "r", reason=None)
    read = home.add(100, "b", reads=read_by_read)
    home.add(1, "c", reads=read)
    home.add(1, "a")
    home.add(1, "b")
    home.add(1, "p")
    unread = home.add(100, "c")
    home.pin(pinned)
    assert home.going(older_than_s=DAY * 50, keep_last=1) == [unread]
    assert running not in home.going(older_than_s=0, keep_last=0)
    unpin(ExecutionFolder(home.engine.settings.executions_dir, pinned))
    assert home.going(older_than_s=DAY * 50, keep_last=1) == [pinned, unread]


def test_never_the_one_whose_result_one_that_stays_has_taken(home: Home) -> None:
    ran = home.add(100)
    home.add(1, takes=ran)
    assert home.going(older_than_s=50 * DAY) == []
    assert home.going(older_than_s=50 * DAY, keep_last=0) == []
    assert ran in home.going(older_than_s=0, keep_last=0)


def test_room_is_free_when_the_last_name_is_gone(home: Home) -> None:
    first, second, third = (home.add(days, size=4 * KIB64) for days in (9, 8, 7))
    home.share(first, second)
    freed = [one.bytes for one in removable(home.engine, Rules(max_bytes=0, keep_last=0), NOW)]
    assert freed[0] < KIB64 < 4 * KIB64 <= freed[1] and freed[2] >= 4 * KIB64
    assert home.going(older_than_s=8.5 * DAY, keep_last=0) == [first]
    remove(home.engine, removable(home.engine, Rules(older_than_s=8.5 * DAY, keep_last=0), NOW))
    assert (home.engine.settings.executions_dir / second / "outputs" / "file").stat().st_size == 4 * KIB64
    assert third in home.engine.store.ids() and first not in home.engine.store.ids()


def test_what_was_removed_is_written_down_and_still_counted(home: Home) -> None:
    old = home.add(100)
    home.add(1)
    gone = remove(home.engine, removable(home.engine, Rules(older_than_s=DAY), NOW))
    assert [one.what for one in gone] == [old] and not (home.engine.settings.executions_dir / old).exists()
    (line,) = (home.path / "removed.jsonl").read_text().splitlines()
    assert {"what": old, "why": "age", "bytes": gone[0].bytes}.items() <= json.loads(line).items()
    assert home.engine.store.read("SELECT removed FROM executions WHERE execution_id = ?", (old,)) == [(1,)]


def test_one_that_somebody_reads_just_now_stays(home: Home) -> None:
    old = home.add(100)
    home.add(1)
    with ExecutionFolder(home.engine.settings.executions_dir, old).locked(shared=True):
        assert remove(home.engine, removable(home.engine, Rules(older_than_s=DAY), NOW)) == []
    assert (home.engine.settings.executions_dir / old).exists()


def test_checkpoints_that_nobody_has_gone_on_with(home: Home) -> None:
    for name, days in (("old", 100), ("new", 1)):
        version = home.path / "checkpoints" / name / "00000001-x"
        version.mkdir(parents=True)
        (version / "state").write_bytes(b"x" * KIB64)
        for path in (version, version.parent):
            os.utime(path, (NOW - days * DAY, NOW - days * DAY))
    (found,) = removable(home.engine, Rules(older_than_s=90 * DAY), NOW)
    assert (found.what, found.bytes >= KIB64) == ("checkpoints/old", True)
    assert [one.what for one in remove(home.engine, [found])] == ["checkpoints/old"]
    assert [path.name for path in (home.path / "checkpoints").iterdir()] == ["new"]


class TestOnTheCommandLine:
    def test_nothing_goes_without_a_word(self, other_forge: Forge) -> None:
        first, second = (other_forge.record("exec", "--", "sh", "-c", "echo x > $FORGE_OUTPUTS/x") for _ in range(2))
        time.sleep(0.1)
        shown = other_forge("gc", "--older-than", "0s")
        assert (
            shown.returncode == 0
            and "1 could be removed, and " in shown.stdout
            and f"  {first.execution_id}  exec " in shown.stdout
        )
        assert Path(first.folder).exists()
        done = other_forge("gc", "--older-than", "0s", "--remove", "--json")
        told = json.loads(done.stdout)["retention"]
        assert [one["what"] for one in told["removed"]] == [first.execution_id] == [one["what"] for one in told["removable"]]
        assert not Path(first.folder).exists() and Path(second.folder).exists()
        assert other_forge("executions", "show", first.execution_id).returncode == 2

    def test_pinned(self, other_forge: Forge) -> None:
        first = other_forge.record("exec", "--", "true")
        other_forge.record("exec", "--", "true")
        assert other_forge("executions", "pin", first.execution_id).stdout == f"{first.execution_id} is kept\n"
        assert "0 could be removed" in other_forge("gc", "--max-size", "0").stdout
        assert other_forge("executions", "unpin", first.execution_id).returncode == 0
        assert "1 removed" in other_forge("gc", "--max-size", "0", "--remove").stdout

    def test_what_a_killed_removal_left_goes_with_the_next(self, other_forge: Forge) -> None:
        other_forge.record("exec", "--", "true")
        torn = other_forge.home / "executions" / ".removing-20260102T030405678-9f86d081"
        torn.mkdir()
        (torn / "file").touch()
        assert "rest of execution 20260102T030405678-9f86d081" in other_forge("gc").stdout and not torn.exists()

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--remove",), "Nothing says what is to be removed"), (("--keep-last", "2"), "Nothing says"), (("--older-than", "soon"), "--older-than"),
            (("--max-size", "-1"), "--max-size"), (("--older-than", "1d", "--keep-last", "-1"), "--keep-last is -1"),
        ],
    )  # fmt: skip
    def test_a_wrong_request_is_a_sentence(self, other_forge: Forge, words: tuple[str, ...], said: str) -> None:
        done = other_forge("gc", *words)
        assert done.returncode == 2 and said in done.stderr
