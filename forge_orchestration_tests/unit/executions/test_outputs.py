"""Collecting outputs from a folder that a hostile program filled: nothing is followed, nothing is overwritten, nothing hangs."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.executions.outputs import Collected, collect_outputs, kept_outputs, shown
from forge_orchestration.model.sections import OutputSettings
from forge_orchestration_tests.conftest import prerequisite
from forge_orchestration_tests.unit.conftest import DeepFolder

MIB = 2**20
SECRET = b"the host's secret"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source -ö'"
    folder.mkdir()
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def collect(source: Path, target: Path, declared: dict[str, str] | None = None, max_bytes: int = MIB, **caps: int) -> Collected:
    return collect_outputs(source, target, declared or {}, OutputSettings(**caps), max_bytes)


def kept(collected: Collected) -> set[str]:
    return {output.path for output in collected.outputs}


def why(collected: Collected) -> dict[str, str]:
    return {item.path: item.why for item in collected.rejected}


def files_in(folder: Path) -> set[str]:
    return {os.path.relpath(os.path.join(root, name), folder) for root, _, names in os.walk(folder) for name in names}


class TestPlain:
    def test_files_and_folders_are_kept_with_digest_and_size(self, source: Path, target: Path) -> None:
        (source / "plots/deep").mkdir(parents=True)
        (source / "a.csv").write_bytes(b"1,2\n")
        (source / "plots/deep/b.png").write_bytes(b"x" * 3_000_000)
        found = collect(source, target, max_bytes=4 * MIB)
        assert [(one.path, one.name, one.bytes) for one in found.outputs] == [
            ("a.csv", "a.csv", 4), ("plots/deep/b.png", "plots/deep/b.png", 3_000_000)
        ]  # fmt: skip
        assert [one.sha256 for one in found.outputs] == [
            hashlib.sha256(b"1,2\n").hexdigest(), hashlib.sha256(b"x" * 3_000_000).hexdigest()
        ]  # fmt: skip
        assert (target / "plots/deep/b.png").read_bytes() == b"x" * 3_000_000
        assert (found.rejected, found.missing) == ([], [])

    def test_nothing_written_is_nothing_kept(self, source: Path, target: Path) -> None:
        (source / "empty").mkdir()
        assert collect(source, target) == Collected(outputs=[], rejected=[], missing=[])

    def test_an_empty_file_is_a_file(self, source: Path, target: Path) -> None:
        (source / "e").touch()
        assert kept(collect(source, target)) == {"e"}

    def test_what_is_kept_is_not_set_uid_and_no_others(self, source: Path, target: Path) -> None:
        (source / "x").touch()
        os.chmod(source / "x", 0o6777)
        collect(source, target)
        assert (target / "x").stat().st_mode & 0o6000 == 0

    @pytest.mark.parametrize(
        "name",
        ["-rf", "--help", "a b", "'\"\\", "ö解💥", "x" * 255, ".hidden", "...", "~", "*", "a;b", "$HOME", "%s", "con\u00a0x"],
    )
    def test_odd_names_that_can_be_kept_are(self, source: Path, target: Path, name: str) -> None:
        (source / name).write_text("x")
        found = collect(source, target)
        if name.isprintable():
            assert kept(found) == {name} == files_in(target)
        else:
            assert list(why(found)) == [shown(name.encode())] and not files_in(target)


class TestDeclared:
    @pytest.mark.parametrize("pattern", ["a.csv", "*.csv", "a.*", "[ab].csv", "?.csv"])
    def test_a_pattern_finds_its_file_and_names_it(self, source: Path, target: Path, pattern: str) -> None:
        (source / "a.csv").touch()
        (source / "other").touch()
        found = collect(source, target, {"table": pattern})
        assert {one.path: one.name for one in found.outputs} == {"a.csv": "table", "other": "other"}
        assert found.missing == []

    def test_a_pattern_with_a_folder(self, source: Path, target: Path) -> None:
        (source / "plots").mkdir()
        (source / "plots/a.png").touch()
        assert collect(source, target, {"p": "plots/*.png"}).missing == []
        assert collect(source, target.parent / "t2", {"p": "*/b.png"}).missing == ["*/b.png"]

    def test_of_several_matches_each_keeps_its_own_name(self, source: Path, target: Path) -> None:
        for name in ("a.csv", "b.csv"):
            (source / name).touch()
        assert {one.name for one in collect(source, target, {"tables": "*.csv"}).outputs} == {"a.csv", "b.csv"}

    def test_what_is_not_there_is_missing(self, source: Path, target: Path) -> None:
        (source / "A.CSV").touch()
        assert collect(source, target, {"t": "*.csv", "u": "A.*"}).missing == ["*.csv"]

    def test_a_declared_output_that_cannot_be_kept_is_missing(self, source: Path, target: Path, secret: Path) -> None:
        os.symlink(secret, source / "a.csv")
        found = collect(source, target, {"t": "a.csv"})
        assert found.missing == ["a.csv"] and "a.csv" in why(found)

    def test_a_folder_does_not_stand_for_a_file(self, source: Path, target: Path) -> None:
        (source / "a.csv").mkdir()
        assert collect(source, target, {"t": "a.csv"}).missing == ["a.csv"]


class TestHostileKinds:
    @pytest.mark.parametrize("aim", ["secret", "../secret", "/etc/passwd", "..", ".", "/", "nowhere", "/proc/self/mem", "self"])
    def test_a_link_is_never_followed(self, source: Path, target: Path, secret: Path, aim: str) -> None:
        os.symlink(aim, source / "self")
        found = collect(source, target)
        assert why(found) == {"self": "it is a link, not a file"}
        assert not found.outputs and not files_in(target)

    def test_a_link_in_place_of_a_folder(self, source: Path, target: Path, secret: Path) -> None:
        os.symlink(secret.parent, source / "folder")
        assert not collect(source, target).outputs
        assert not files_in(target)

    def test_the_outputs_folder_itself_as_a_link(self, tmp_path: Path, target: Path, secret: Path) -> None:
        os.symlink(secret.parent, tmp_path / "outputs")
        with pytest.raises(OSError):
            collect(tmp_path / "outputs", target)
        assert not files_in(target)

    @pytest.mark.timeout(10)
    def test_a_fifo_does_not_hang_us(self, source: Path, target: Path) -> None:
        os.mkfifo(source / "f")
        assert why(collect(source, target)) == {"f": "it is a FIFO, not a file"}

    def test_a_socket(self, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(source)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("s")
            assert why(collect(source, target)) == {"s": "it is a socket, not a file"}

    @pytest.mark.timeout(10)
    def test_devices(self, source: Path, target: Path) -> None:
        prerequisite(os.geteuid() == 0, "devices can be made by root only")
        os.mknod(source / "zero", 0o20666, os.makedev(1, 5))
        os.mknod(source / "loop", 0o60666, os.makedev(7, 0))
        assert why(collect(source, target)) == dict.fromkeys(("zero", "loop"), "it is a device, not a file")

    def test_a_hard_link_is_a_file_of_its_own_when_kept(self, source: Path, target: Path) -> None:
        (source / "a").write_text("x")
        os.link(source / "a", source / "b")
        assert kept(collect(source, target)) == {"a", "b"}
        (source / "a").write_text("changed later")
        assert (target / "a").read_text() == (target / "b").read_text() == "x"
        assert (target / "a").stat().st_nlink == 1

    @pytest.mark.parametrize(
        "name",
        [
            b"a\nb",
            b"\n",
            b"\x1b[2J",
            b"a\x00b"[:1] + b"\x7f",
            b"\xff\xfe",
            b"\xc3\x28",
            b"a\tb",
            b"a\rb",
            "a\u202eb".encode(),
            b"\x01" * 255,
        ],
        ids=lambda name: repr(name)[:20],
    )
    def test_names_that_would_lie_to_a_reader_are_rejected_and_shown_escaped(self, source: Path, target: Path, name: bytes) -> None:
        Path(os.fsdecode(os.path.join(os.fsencode(source), name))).write_text("x")
        (path,) = why(collect(source, target))
        assert path == shown(name) and path.isprintable() and path.isascii()
        assert not files_in(target)

    def test_a_folder_with_such_a_name(self, source: Path, target: Path) -> None:
        folder = Path(os.fsdecode(os.path.join(os.fsencode(source), b"\xff\n")))
        folder.mkdir()
        (folder / "inside").write_text("x")
        found = collect(source, target)
        assert len(found.rejected) == 1 and not found.outputs


class TestHostileAmounts:
    def test_a_sparse_file_counts_with_the_size_a_reader_sees(self, source: Path, target: Path) -> None:
        (source / "small").write_text("x")
        with open(source / "sparse", "wb") as file:
            file.truncate(2**40)
        found = collect(source, target)
        assert kept(found) == {"small"} and "larger" in why(found)["sparse"]
        assert files_in(target) == {"small"}

    def test_many_files_that_are_together_too_large(self, source: Path, target: Path) -> None:
        for number in range(5):
            (source / f"{number}").write_bytes(b"x" * 1000)
        found = collect(source, target, max_bytes=3500)
        assert (len(found.outputs), len(found.rejected)) == (3, 2)

    def test_exactly_the_cap_is_kept(self, source: Path, target: Path) -> None:
        (source / "a").write_bytes(b"x" * 1000)
        assert kept(collect(source, target, max_bytes=1000)) == {"a"}

    def test_hidden_ones_that_are_not_meant_do_not_hide_that_there_are_more(self, source: Path, target: Path) -> None:
        for number in range(1100):
            (source / f".{number:04}").touch()
        (source / "seen").touch()
        found = collect_outputs(source, target, {}, OutputSettings(max_files=50), MIB, hidden=False)
        assert "rest is not looked at" in why(found)["."] and set(why(found)) == {"."}

    def test_too_many_files(self, source: Path, target: Path) -> None:
        for number in range(30):
            (source / f"{number:02}").touch()
        found = collect(source, target, max_files=10)
        assert len(found.outputs) == 10 and 0 < len(found.rejected) <= 20
        assert all("more than 10 files" in text for text in why(found).values())

    def test_the_list_of_rejected_is_capped_too(self, source: Path, target: Path) -> None:
        for number in range(50):
            os.symlink("x", source / f"{number:02}")
        assert len(collect(source, target, max_files=10).rejected) == 10

    def test_too_many_folders(self, source: Path, target: Path) -> None:
        for number in range(40):
            (source / f"{number:02}").mkdir()
            (source / f"{number:02}/f").touch()
        found = collect(source, target, max_files=10)
        assert len(found.outputs) <= 10 and found.rejected

    def test_too_deep(self, source: Path, target: Path) -> None:
        (source / "a/b/c/d").mkdir(parents=True)
        (source / "a/b/ok").touch()
        (source / "a/b/c/d/too deep").touch()
        found = collect(source, target, max_depth=3)
        assert kept(found) == {"a/b/ok"} and why(found) == {"a/b/c": "it lies more than 3 folders deep"}

    def test_folders_deeper_than_any_recursion_goes(self, source: Path, target: Path, deep_folder: DeepFolder) -> None:
        deep_folder(source, "d", sys.getrecursionlimit() + 1000)
        found = collect(source, target)
        assert not found.outputs
        assert list(why(found).values()) == ["it lies more than 32 folders deep"]
        assert not list(target.iterdir())

    def test_a_path_longer_than_the_kernel_takes_in_one_go(self, source: Path, target: Path, deep_folder: DeepFolder) -> None:
        """30 folders of 200 characters: it can be walked step by step, but the target's path cannot be written in one call."""
        deep_folder(source, "d" * 200, 30)
        (source / "ok").touch()
        found = collect(source, target)
        assert "ok" in kept(found)
        assert len(found.outputs) + len(found.rejected) == 2


class TestUnreadable:
    def test_a_file_and_a_folder_without_permissions(self, source: Path, target: Path, as_nobody) -> None:
        (source / "ok").write_text("x")
        (source / "closed").write_text("x")
        (source / "folder").mkdir()
        (source / "folder/inside").touch()
        os.chmod(source / "closed", 0)
        os.chmod(source / "folder", 0)
        said = as_nobody(lambda: msgspec.json.encode(collect(source, target)).decode())
        os.chmod(source / "folder", 0o700)
        found = msgspec.json.decode(said, type=Collected)
        assert kept(found) == {"ok"}
        assert {path: "cannot be read" in text for path, text in why(found).items()} == {"closed": True, "folder": True}


class TestCutShort:
    def test_what_is_being_copied_has_no_name_yet_and_what_was_copied_has(
        self, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("a", "b"):
            (source / name).write_bytes(b"x" * 3_000_000)
        reads = iter(range(100))

        def read(fd: int, size: int) -> bytes:
            if next(reads) == 5:  # in the middle of the second
                raise KeyboardInterrupt
            return os_read(fd, size)

        os_read = os.read
        monkeypatch.setattr(os, "read", read)
        with pytest.raises(KeyboardInterrupt):
            collect(source, target, max_bytes=10 * MIB)
        monkeypatch.undo()
        assert files_in(target) == {"a"} and os.listdir(target.parent).count(".output.partial") == 0
        (kept_one,) = kept_outputs(target, {"table": "a"})
        assert (kept_one.name, kept_one.path, kept_one.bytes) == ("table", "a", 3_000_000)
        assert kept_one.sha256 == hashlib.sha256(b"x" * 3_000_000).hexdigest()

    def test_links_are_no_outputs(self, target: Path, secret: Path) -> None:
        os.symlink(secret, target / "a")
        assert kept_outputs(target, {}) == []


class TestTarget:
    def test_what_is_there_is_never_overwritten(self, source: Path, target: Path) -> None:
        (source / "a").write_text("new")
        (target / "a").write_text("old")
        with pytest.raises(FileExistsError):
            collect(source, target)
        assert (target / "a").read_text() == "old"

    def test_a_link_in_the_target_is_not_written_through(self, source: Path, target: Path, secret: Path) -> None:
        (source / "a").write_text("new")
        os.symlink(secret, target / "a")
        with pytest.raises(FileExistsError):
            collect(source, target)
        assert secret.read_bytes() == SECRET


def test_shown_is_one_printable_line() -> None:
    assert shown(b"a\n\xff\x1b[\xc3\xb6") == "a\\n\\xff\\x1b[ö"
