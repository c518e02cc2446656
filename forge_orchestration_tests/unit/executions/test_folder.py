"""Execution ids and folders: an id names a folder beneath `executions`, and nothing else ever."""

from __future__ import annotations

import multiprocessing
import os
import re
from pathlib import Path

import pytest

from forge_orchestration.errors import SpecError, StoreError
from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id, write_atomically
from forge_orchestration.model.record import ExecutionRecord

ID = "20260102T030405678-9f86d081"


def test_new_ids_are_ids_differ_and_sort_by_time(tmp_path: Path) -> None:
    ids = [new_execution_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [one[:18] for one in ids] == sorted(one[:18] for one in ids)
    for one in ids[:10]:
        assert ExecutionFolder(tmp_path, one).path == tmp_path / one


@pytest.mark.parametrize(
    "hostile",
    [
        "", ".", "..", "../../x", f"../{ID}", f"{ID}/..", f"{ID}/../../x", f"/{ID}", f"{ID}/", f"{ID}\n", f" {ID}", f"{ID}\0",
        ID.upper(), "-rf", "last", "*", "20260102T030405678-9f86d08", "20260102T030405678-9f86d0811", "٢0260102T030405678-9f86d081",
        ID.replace("-", "/"), "x" * 10000, "\x1b[2J",
    ],
    ids=lambda value: ascii(value)[:30],
)  # fmt: skip
def test_what_is_no_id_is_refused(tmp_path: Path, hostile: str) -> None:
    with pytest.raises(SpecError) as caught:
        ExecutionFolder(tmp_path, hostile)
    assert len(str(caught.value)) < 300


def test_it_is_closed_to_others(tmp_path: Path) -> None:
    folder = ExecutionFolder(tmp_path, ID)
    before = os.umask(0)
    try:
        folder.create()
        folder.write_record(ExecutionRecord(execution_id=ID, analysis="a"))
    finally:
        os.umask(before)
    assert [folder.path.stat().st_mode & 0o777, folder.outputs.stat().st_mode & 0o777] == [0o700, 0o700]
    assert folder.record_path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        folder.create()


def test_a_record_comes_back(tmp_path: Path) -> None:
    folder = ExecutionFolder(tmp_path, ID)
    folder.create()
    for message in ("one", "two"):
        record = ExecutionRecord(execution_id=ID, analysis="a", message=message)
        folder.write_record(record)
        assert folder.read_record() == record
    assert sorted(os.listdir(folder.path)) == ["lock", "outputs", "record.json"]


def test_no_record_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"no execution {ID}"):
        ExecutionFolder(tmp_path, ID).read_record()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"execution_id": "\xff", "analysis": "a"}'])
def test_a_torn_record_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    folder = ExecutionFolder(tmp_path, ID)
    folder.create()
    folder.record_path.write_bytes(content)
    with pytest.raises(StoreError, match="cannot be read"):
        folder.read_record()


def test_a_record_that_is_a_folder_is_a_sentence(tmp_path: Path) -> None:
    folder = ExecutionFolder(tmp_path, ID)
    folder.create()
    folder.record_path.mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        folder.read_record()


def _replace(path: Path, letter: bytes) -> None:
    for _ in range(200):
        write_atomically(path, letter * 100_000)


def test_a_reader_finds_the_old_or_the_new_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"a" * 100_000)
    writers = [multiprocessing.get_context("fork").Process(target=_replace, args=(path, letter)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    looks = 0
    while any(writer.is_alive() for writer in writers) or not looks:
        content = path.read_bytes()
        assert len(content) == 100_000 and len(set(content)) == 1
        looks += 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["f"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["f"]


def test_the_form_of_an_id() -> None:
    assert re.fullmatch(r"\d{8}T\d{9}-[0-9a-f]{8}", new_execution_id())


class TestLock:
    def test_one_holds_it_and_the_next_waits_or_goes_without(self, tmp_path: Path) -> None:
        folder = ExecutionFolder(tmp_path, ID)
        folder.create()
        with folder.locked() as mine, folder.locked(wait=False) as theirs:
            assert mine and not theirs
        with folder.locked(wait=False) as mine:
            assert mine

    def test_it_ends_with_its_holder(self, tmp_path: Path) -> None:
        folder = ExecutionFolder(tmp_path, ID)
        folder.create()
        read_end, write_end = os.pipe()
        if (pid := os.fork()) == 0:
            folder.lock()
            os.write(write_end, b".")
            os.execv("/bin/sleep", ["sleep", "0"])  # the lock is not inherited by a program
        os.read(read_end, 1)
        os.waitpid(pid, 0)
        with folder.locked(wait=False) as mine:
            assert mine
        os.close(read_end)
        os.close(write_end)

    def test_there_is_none_where_there_is_no_folder(self, tmp_path: Path) -> None:
        with ExecutionFolder(tmp_path, ID).locked() as mine:
            assert not mine


def test_one_that_never_began_has_no_record_or_an_empty_one_and_no_outputs(tmp_path: Path) -> None:
    folder = ExecutionFolder(tmp_path, ID)
    assert folder.never_began
    folder.create()
    assert folder.never_began
    folder.record_path.touch()  # as the end of the host may leave it
    assert folder.never_began
    (folder.outputs / "a").touch()
    assert not folder.never_began
    folder.write_record(ExecutionRecord(execution_id=ID, analysis="a"))
    assert not folder.never_began


def test_what_was_torn_is_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = ExecutionFolder(tmp_path, ID)
    folder.create()
    for name in (".record.json.1", ".plan.json.77", ".output.partial", "stdout.log"):
        (folder.path / name).touch()
    folder.remove_torn()
    assert sorted(os.listdir(folder.path)) == ["lock", "outputs", "stdout.log"]
