"""The two looks around an execution, at real files and real SQLite databases: what is found, and on whom it is not blamed."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.errors import HostError
from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id
from forge_orchestration.executions.store import Store
from forge_orchestration.health.guard import Guard
from forge_orchestration.model.guard import GuardFacts, GuardFinding
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.sections import GuardSettings
from forge_orchestration.settings import Settings

OWN = new_execution_id()
ALONE = "No other execution of this deployment ran meanwhile"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A protected folder with hostile names."""
    folder = tmp_path / "reference ö '\n#"
    (folder / "deep").mkdir(parents=True)
    (folder / "-rf").write_text("genome")
    (folder / "deep/index").write_bytes(b"0123456789")
    (folder / "link").symlink_to("deep/index")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "lab.db"
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE samples (id INTEGER PRIMARY KEY, name TEXT)")
        made.executemany("INSERT INTO samples VALUES (?, ?)", [(n, f"sample {n}") for n in range(2000)])
        made.commit()
    return path


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store(settings.store_path)


def guarding(settings: Settings, *paths: Path, database: Path | str | None = None, **more: object) -> Settings:
    url = f"sqlite:///{database}" if isinstance(database, Path) else database
    guard = GuardSettings(analyses=("*",), paths=paths, **more)
    return msgspec.structs.replace(settings, guard=guard, protected_databases={"lab": url} if url else {})


def looks(settings: Settings, store: Store, meanwhile: Callable[[], object]) -> GuardFacts:
    guard = Guard(settings, OWN)
    guard.look_before()
    meanwhile()
    return guard.look_after(store)


def only(facts: GuardFacts) -> GuardFinding:
    (finding,) = facts.findings
    return finding


def ran(store: Store, settings: Settings, start: float, end: float | None, *, row_is_behind: bool = False) -> str:
    """Another execution of the deployment, by its row and its record."""
    folder = ExecutionFolder(settings.executions_dir, new_execution_id())
    status = Status.RUNNING if end is None else Status.SUCCEEDED
    record = ExecutionRecord(
        execution_id=folder.id, analysis="other", status=status, end_reason=EndReason.COMPLETED if end else None, queued_at=start,
        started_at=start, ended_at=end,
    )  # fmt: skip
    folder.create()
    folder.write_record(record)
    store.save(msgspec.structs.replace(record, status=Status.QUEUED, started_at=None, ended_at=None) if row_is_behind else record)
    return folder.id


def damage(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(4096 * 2)
        file.write(bytes(4096))


class TestPaths:
    def test_what_is_left_alone_has_no_finding(self, settings: Settings, store: Store, files: Path) -> None:
        facts = looks(guarding(settings, files, files / "-rf"), store, lambda: None)
        assert facts.findings == [] and (facts.files, facts.bytes) == (2, 16)
        assert facts.after_at is not None and facts.before_at <= facts.after_at <= time.time()
        assert facts.paths[0].endswith("reference ö '\\n#"), "a line end would tear what is printed"

    def test_new_times_and_modes_are_no_other_content(self, settings: Settings, store: Store, files: Path) -> None:
        def touch() -> None:
            os.utime(files / "-rf")
            (files / "-rf").chmod(0o600)

        assert looks(guarding(settings, files), store, touch).findings == []

    def test_an_edit_that_keeps_size_and_time(self, settings: Settings, store: Store, files: Path) -> None:
        path = files / "deep/index"
        facts = path.stat()

        def edit() -> None:
            path.write_bytes(b"0123456780")
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

        finding = only(looks(guarding(settings, files), store, edit))
        assert finding.verdict == "changed" and finding.target.endswith("deep/index")
        assert "has other content, with the same size and time" in finding.what and ALONE in finding.what
        before, after = finding.before, finding.after
        assert before is not None and after is not None
        assert (before.bytes, before.mtime) == (after.bytes, after.mtime) and before.sha256 != after.sha256
        assert len(before.sha256 or "") == len(after.sha256 or "") == 64

    def test_what_is_removed_added_and_replaced(self, settings: Settings, store: Store, files: Path) -> None:
        def change() -> None:
            (files / "-rf").unlink()
            (files / "new").touch()
            (files / "deep/index").unlink()
            (files / "deep/index").symlink_to("/etc/passwd")
            (files / "link").unlink()
            (files / "link").symlink_to("elsewhere")
            (files / "pipe").unlink()
            (files / "pipe").mkdir()

        facts = looks(guarding(settings, files), store, change)
        found = {Path(one.target).name: one.what.split(".")[0] for one in facts.findings}
        assert found == {
            "-rf": "was removed", "new": "was added", "index": "was replaced: it was a file, and is a link to /etc/passwd",
            "link": "points to elsewhere, and no longer to deep/index", "pipe": "was removed",
        }  # fmt: skip
        assert {one.verdict for one in facts.findings} == {"changed"}

    @pytest.mark.parametrize("how", ["removed", "a link to itself, moved", "a file"])
    def test_the_folder_itself(self, settings: Settings, store: Store, files: Path, how: str) -> None:
        def change() -> None:
            files.rename(files.with_name("elsewhere"))
            if how == "a link to itself, moved":
                files.symlink_to("elsewhere")
            elif how == "a file":
                files.touch()

        facts = looks(guarding(settings, files), store, change)
        assert len(facts.findings) == 5, "the folder, and the four in it"
        assert {one.verdict for one in facts.findings} == {"changed"}

    def test_one_that_points_elsewhere_is_not_followed(self, settings: Settings, store: Store, files: Path, tmp_path: Path) -> None:
        (tmp_path / "current").symlink_to(files)
        facts = looks(guarding(settings, tmp_path / "current"), store, lambda: (files / "-rf").write_text("x"))
        assert facts.findings == [] and facts.files == 0

    def test_very_many_are_counted(self, settings: Settings, store: Store, files: Path) -> None:
        facts = looks(guarding(settings, files), store, lambda: [(files / f"new {n}").touch() for n in range(150)])
        assert len(facts.findings) == 101 and "50 more files" in facts.findings[-1].what

    def test_one_that_cannot_be_read(self, settings: Settings, files: Path, as_nobody: Callable[[Callable[[], str]], str]) -> None:
        (files / "-rf").chmod(0)

        def look() -> str:
            try:
                return str(Guard(guarding(settings, files), OWN).look_before())
            except HostError as error:
                return str(error)

        assert "-rf: cannot be read" in as_nobody(look)

    def test_a_folder_that_is_closed_afterwards_is_suspect_and_its_files_are_not_called_removed(
        self, settings: Settings, files: Path, as_nobody: Callable[[Callable[[], str]], str]
    ) -> None:
        def look() -> str:
            facts = looks(guarding(settings, files), Store(settings.store_path), lambda: (files / "deep").chmod(0))
            (files / "deep").chmod(0o755)
            return str([(Path(one.target).name, one.verdict, one.what) for one in facts.findings])

        assert as_nobody(look) == "[('deep', 'suspect', 'could not be read afterwards')]"

    def test_one_that_is_not_there_refuses_or_is_noted(self, settings: Settings, store: Store, files: Path) -> None:
        gone = files / "no\x1bsuch"
        with pytest.raises(HostError, match=r"nothing was started: .*such: is not there.*on_unreadable") as caught:
            Guard(guarding(settings, files, gone), OWN).look_before()
        assert "\x1b" not in str(caught.value)
        before, after = looks(guarding(settings, files, gone, on_unreadable="note"), store, gone.touch).findings
        assert (before.verdict, before.what) == ("before", "before the start: is not there")
        assert after.verdict == "changed" and "was added" in after.what


class TestDatabases:
    @pytest.mark.parametrize("tier", ["quick", "full"])
    def test_damage_is_corruption_and_says_that_it_was_whole(
        self, settings: Settings, store: Store, database: Path, tier: str
    ) -> None:
        facts = looks(guarding(settings, database=database, tier=tier), store, lambda: damage(database))
        finding = only(facts)
        assert (finding.target, finding.verdict, facts.databases, facts.tier) == ("lab", "corrupted", ["lab"], tier)
        assert "is corrupt" in finding.what and "before the start it was whole" in finding.what and ALONE in finding.what
        assert "another program of this host" in finding.what
        assert not facts.is_suspect, "corrupted is not suspect"

    def test_rows_that_somebody_writes_are_none_of_our_concern(self, settings: Settings, store: Store, database: Path) -> None:
        def write() -> None:
            with closing(sqlite3.connect(database)) as other:
                other.execute("INSERT INTO samples (name) VALUES ('new')")
                other.commit()

        assert looks(guarding(settings, database=database), store, write).findings == []

    def test_one_that_was_corrupt_before_is_never_blamed_on_this_one(
        self, settings: Settings, store: Store, database: Path
    ) -> None:
        damage(database)
        finding = only(looks(guarding(settings, database=database), store, lambda: None))
        assert finding.verdict == "before" and finding.what.startswith("before the start: ") and "corrupt" in finding.what

    def test_one_that_is_gone_afterwards(self, settings: Settings, store: Store, database: Path) -> None:
        finding = only(looks(guarding(settings, database=database), store, database.unlink))
        assert finding.verdict == "corrupted" and "is not there; before the start it was whole" in finding.what

    def test_one_that_is_locked_afterwards_is_suspect_and_not_corrupted(
        self, settings: Settings, store: Store, database: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda *words, **more: real(*words, **{**more, "timeout": 0.1}))
        with closing(real(database)) as holder:
            facts = looks(guarding(settings, database=database), store, lambda: holder.execute("BEGIN EXCLUSIVE"))
        assert only(facts).verdict == "suspect" and "could not be looked at afterwards" in only(facts).what and facts.is_suspect
        assert "look for another program" not in only(facts).what, "nobody is known to have done anything"

    def test_one_that_is_not_there_before_refuses_or_is_noted(self, settings: Settings, store: Store, database: Path) -> None:
        whole = database.read_bytes()
        database.unlink()
        with pytest.raises(HostError, match="nothing was started: lab: .*is not there"):
            Guard(guarding(settings, database=database), OWN).look_before()
        noting = guarding(settings, database=database, on_unreadable="note")
        assert only(looks(noting, store, lambda: database.write_bytes(whole))).verdict == "before"
        database.unlink()
        before, after = looks(noting, store, lambda: database.write_bytes(b"no database" * 999)).findings
        assert (before.verdict, after.verdict) == ("before", "suspect") and "it was not looked at before" in after.what

    def test_rows_that_point_nowhere_are_suspect(self, settings: Settings, store: Store, database: Path) -> None:
        def orphan() -> None:
            with closing(sqlite3.connect(database)) as other:
                other.executescript("CREATE TABLE counts (sample REFERENCES samples(id)); INSERT INTO counts VALUES (-1);")

        finding = only(looks(guarding(settings, database=database), store, orphan))
        assert finding.verdict == "suspect" and "rows point to rows that are not there" in finding.what

    def test_only_those_that_are_named_are_looked_at(self, settings: Settings, store: Store, database: Path) -> None:
        both = guarding(settings, database=database, databases=("lab",))
        both = msgspec.structs.replace(both, protected_databases={**both.protected_databases, "gone": "sqlite:////nowhere.db"})
        assert looks(both, store, lambda: None).databases == ["lab"]


class TestAttribution:
    @pytest.mark.parametrize("row_is_behind", [False, True])
    @pytest.mark.parametrize("ended", [False, True])
    def test_with_others_meanwhile_nobody_is_blamed(
        self, settings: Settings, store: Store, database: Path, ended: bool, row_is_behind: bool
    ) -> None:
        seen: list[str] = []

        def meanwhile() -> None:
            now = time.time()
            seen.append(ran(store, settings, now - 100, now if ended else None, row_is_behind=row_is_behind))
            damage(database)

        facts = looks(guarding(settings, database=database), store, meanwhile)
        finding = only(facts)
        assert finding.verdict == "suspect" and finding.others == seen and facts.is_suspect
        assert f"Also ran meanwhile: {seen[0]};" in finding.what and "is corrupt" in finding.what

    def test_who_ended_before_or_never_began_or_is_this_one_does_not_count(
        self, settings: Settings, store: Store, files: Path
    ) -> None:
        now = time.time()
        ran(store, settings, now - 100, now - 50)
        store.save(ExecutionRecord(execution_id=new_execution_id(), analysis="queued", queued_at=now))
        store.save(ExecutionRecord(execution_id=OWN, analysis="this", queued_at=now, started_at=now))
        finding = only(looks(guarding(settings, files), store, lambda: (files / "-rf").write_text("x")))
        assert finding.verdict == "changed" and finding.others == []

    def test_a_store_that_cannot_be_read_does_not_lose_the_finding(self, settings: Settings, store: Store, files: Path) -> None:
        def change() -> None:
            (files / "-rf").write_text("x")
            store.close()

        finding = only(looks(guarding(settings, files), store, change))
        assert finding.verdict == "suspect" and "Which executions ran meanwhile is not known" in finding.what
