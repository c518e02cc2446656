"""The seal: whatever becomes of a runtime after it was built is found, and named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.runtimes import index, seal


def quick_verdict(folder: Path, max_age_s: float) -> seal.Verdict:
    return seal.quick_verdict(folder, lambda: compare(folder, full=False), max_age_s)


def compare(folder: Path, *, full: bool) -> list[str]:
    return seal.compare(folder, seal.Tree(folder / "prefix"), full=full)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed build with files, folders, links, byte code and hostile names."""
    build = tmp_path / "build ö'"
    prefix = build / "prefix"
    for name, content in {
        "bin/tool": "#!/bin/sh\n", "lib/a.py": "one = 1\n", "lib/b.py": "two = 2\n", "lib/-x\ny": "odd", "lib/empty": "",
        "lib/__pycache__/a.pyc": "code",
    }.items():  # fmt: skip
        (prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (prefix / name).write_text(content)
    os.chmod(prefix / "bin/tool", 0o755)
    os.symlink("tool", prefix / "bin/link")
    os.symlink("/usr/bin/python3", prefix / "bin/python3")
    seal.save(build, seal.Tree(prefix), seal.make(prefix))
    return build


def replace_keeping_times(path: Path, content: str) -> None:
    facts = path.stat()
    assert len(content) == facts.st_size
    path.write_text(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_what_was_sealed_is_as_it_was(folder: Path) -> None:
    assert compare(folder, full=False) == compare(folder, full=True) == []


def test_a_seal_comes_back(folder: Path) -> None:
    assert seal.load(folder) == seal.make(folder / "prefix")


def test_it_lists_everything_sorted_with_kinds(folder: Path) -> None:
    entries = {entry.path: entry for entry in seal.make(folder / "prefix")}
    assert {path: entry.kind for path, entry in entries.items()} == {
        "bin": "d", "lib": "d", "lib/__pycache__": "d", "bin/tool": "f", "lib/a.py": "f", "lib/b.py": "f", "lib/-x\ny": "f",
        "lib/empty": "f", "lib/__pycache__/a.pyc": "f", "bin/link": "l", "bin/python3": "l",
    }  # fmt: skip
    assert entries["bin/link"].target == "tool" and entries["bin/tool"].mode == 0o755
    assert all(bool(entry.sha256) is (entry.kind == "f") for entry in entries.values())


def edit(prefix: Path) -> None:
    (prefix / "lib/a.py").write_text("one = 1; import evil\n")


def edit_same_size(prefix: Path) -> None:
    (prefix / "lib/a.py").write_text("one = 2\n")
    os.utime(prefix / "lib/a.py", (1, 1))


CHANGES = {
    "edited": (edit, "lib/a.py was edited"),
    "edited, same size": (edit_same_size, "lib/a.py was edited"),
    "touched": (lambda prefix: os.utime(prefix / "lib/a.py", (1, 1)), "lib/a.py was edited"),
    "added file": (lambda prefix: (prefix / "lib/evil.pth").touch(), "lib/evil.pth was added"),
    "added folder": (lambda prefix: (prefix / "lib/new").mkdir(), "lib/new was added"),
    "added link": (lambda prefix: os.symlink("/etc", prefix / "lib/etc"), "lib/etc was added"),
    "missing file": (lambda prefix: (prefix / "lib/b.py").unlink(), "lib/b.py is missing"),
    "missing link": (lambda prefix: (prefix / "bin/link").unlink(), "bin/link is missing"),
    "mode": (lambda prefix: os.chmod(prefix / "lib/a.py", 0o4777), "lib/a.py has mode 4777 instead of"),
    "mode of a folder": (lambda prefix: os.chmod(prefix / "lib", 0o777), "lib has mode 777 instead of"),
    "link target": (
        lambda prefix: ((prefix / "bin/link").unlink(), os.symlink("evil", prefix / "bin/link")),
        "bin/link links elsewhere",
    ),
    "file becomes link": (
        lambda prefix: ((prefix / "lib/a.py").unlink(), os.symlink("b.py", prefix / "lib/a.py")),
        "lib/a.py was replaced by another kind of file",
    ),
    "link becomes file": (
        lambda prefix: ((prefix / "bin/link").unlink(), (prefix / "bin/link").touch()),
        "bin/link was replaced by another kind of file",
    ),
    "file becomes folder": (
        lambda prefix: ((prefix / "lib/a.py").unlink(), (prefix / "lib/a.py").mkdir()),
        "lib/a.py was replaced by another kind of file",
    ),
    "file becomes fifo": (
        lambda prefix: ((prefix / "lib/a.py").unlink(), os.mkfifo(prefix / "lib/a.py")),
        "lib/a.py was replaced by another kind of file",
    ),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("full", [False, True], ids=["quick", "full"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_and_named(folder: Path, change: str, full: bool) -> None:
    make_it, finding = CHANGES[change]
    make_it(folder / "prefix")
    findings = compare(folder, full=full)
    assert len(findings) == 1 and findings[0].startswith(finding), findings


def test_only_full_finds_an_edit_that_kept_size_and_time(folder: Path) -> None:
    replace_keeping_times(folder / "prefix/lib/a.py", "one = 9\n")
    assert compare(folder, full=False) == []
    assert compare(folder, full=True) == ["lib/a.py has other content, though size and time are the same"]


class TestByteCode:
    def test_what_python_writes_later_is_no_finding(self, folder: Path) -> None:
        cache = folder / "prefix/lib/__pycache__"
        (cache / "b.pyc").write_text("new")
        (cache / "a.pyc").unlink()
        (folder / "prefix/bin/__pycache__").mkdir()
        assert compare(folder, full=False) == []

    def test_edited_byte_code_is_found_by_full(self, folder: Path) -> None:
        """Python would run it."""
        replace_keeping_times(folder / "prefix/lib/__pycache__/a.pyc", "evil")
        assert compare(folder, full=False) == []
        assert len(compare(folder, full=True)) == 1


@pytest.mark.parametrize("full", [False, True], ids=["quick", "full"])
@pytest.mark.parametrize("name", ["lib/x__pycache__.pth", "__pycache__.pth", "lib/__pycache__x/a.py"])
def test_a_name_that_contains_the_word_is_no_byte_code(folder: Path, name: str, full: bool) -> None:
    """Python runs such a `.pth` at every start."""
    (folder / "prefix" / name).parent.mkdir(exist_ok=True)
    (folder / "prefix" / name).write_text("import evil")
    assert f"{name} was added" in compare(folder, full=full)


def test_a_prefix_that_is_gone(folder: Path) -> None:
    shutil.rmtree(folder / "prefix")
    assert compare(folder, full=False)


def test_many_findings_are_cut(folder: Path) -> None:
    for number in range(100):
        (folder / f"prefix/{number}").touch()
    assert len(compare(folder, full=False)) == 20


@pytest.mark.parametrize("content", [None, "", "[", '{"a": 1}', '[["a"]]'])
def test_a_seal_that_cannot_be_read_is_a_sentence(folder: Path, content: str | None) -> None:
    (folder / "seal.json").unlink()
    if content is not None:
        (folder / "seal.json").write_text(content)
    with pytest.raises(RuntimeCatalogError, match=r"seal\.json cannot be read"):
        compare(folder, full=True)


class TestIndex:
    """It is what makes a quick comparison quick; what it cannot show to be whole is looked at with the seal."""

    @pytest.fixture
    def looked_up(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The builds whose seal was asked."""
        asked: list[Path] = []
        load = seal.load
        monkeypatch.setattr(seal, "load", lambda folder: asked.append(folder) or load(folder))
        return asked

    def test_it_is_enough_for_a_whole_runtime(self, folder: Path, looked_up: list[Path]) -> None:
        assert compare(folder, full=False) == looked_up == []

    def test_byte_code_that_was_added_does_not_matter(self, folder: Path, looked_up: list[Path]) -> None:
        (folder / "prefix/lib/__pycache__/b.pyc").write_text("new")
        (folder / "prefix/bin/__pycache__").mkdir()
        (folder / "prefix/bin/__pycache__/deep").mkdir()
        assert compare(folder, full=False) == looked_up == []

    @pytest.mark.parametrize("damage", ["missing", "empty", "torn", "of another", "no find"])
    def test_without_it_the_seal_is_asked(
        self, folder: Path, looked_up: list[Path], damage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = folder / "index"
        if damage == "missing":
            path.unlink()
        elif damage == "no find":
            monkeypatch.setattr(index, "_PRINT", ("-nonsense",))
        else:
            content = path.read_bytes()
            path.write_bytes({"empty": b"", "torn": content[:-40], "of another": content.replace(b"lib", b"bil")}[damage])
        assert compare(folder, full=False) == []
        assert looked_up == [folder]
        (folder / "prefix/lib/b.py").unlink()
        assert compare(folder, full=False) == ["lib/b.py is missing"]

    def test_odd_kinds_are_looked_at(self, folder: Path) -> None:
        os.mkfifo(folder / "prefix/pipe")
        os.chmod(folder / "prefix/pipe", 0o644)
        seal.save(folder, seal.Tree(folder / "prefix"), seal.make(folder / "prefix"))
        assert compare(folder, full=False) == []
        os.chmod(folder / "prefix/pipe", 0o777)
        assert compare(folder, full=False) == ["pipe has mode 777 instead of 644"]

    def test_many_folders_and_long_names(self, tmp_path: Path, looked_up: list[Path]) -> None:
        """More than one command line holds."""
        prefix = tmp_path / "build" / "prefix"
        for number in range(1500):
            (prefix / f"{number:0200d}" / ("ö" * 120)).mkdir(parents=True)
        seal.save(tmp_path / "build", seal.Tree(prefix), seal.make(prefix))
        assert compare(tmp_path / "build", full=False) == looked_up == []
        (prefix / f"{1499:0200d}" / ("ö" * 120) / "x").touch()
        assert compare(tmp_path / "build", full=False) == [f"{1499:0200d}/{'ö' * 120}/x was added"]

    @pytest.mark.parametrize("when", [0, 1, 10**9 - 1, 10**9, 1_700_000_000_123_456_789, 4 * 10**18])
    def test_every_time(self, folder: Path, looked_up: list[Path], when: int) -> None:
        os.utime(folder / "prefix/lib/a.py", ns=(when, when))
        seal.save(folder, seal.Tree(folder / "prefix"), seal.make(folder / "prefix"))
        assert compare(folder, full=False) == looked_up == []


class TestDigests:
    def test_the_seal_digest_is_of_everything(self, folder: Path) -> None:
        entries = seal.make(folder / "prefix")
        first = seal.seal_digest(entries)
        assert seal.seal_digest(entries[::-1]) == first
        os.chmod(folder / "prefix/lib/a.py", 0o600)
        assert seal.seal_digest(seal.make(folder / "prefix")) != first

    def test_times_are_no_part_of_it(self, folder: Path) -> None:
        first = seal.seal_digest(seal.make(folder / "prefix"))
        os.utime(folder / "prefix/lib/a.py", (1, 1))
        assert seal.seal_digest(seal.make(folder / "prefix")) == first

    def test_the_content_digest_leaves_out_what_differs_between_builds_of_one_lock(self, folder: Path) -> None:
        prefix = folder / "prefix"
        first = seal.content_digest(seal.make(prefix), "3.11.2")
        (prefix / "lib/__pycache__/a.pyc").write_text("other time stamp")
        (prefix / "lib/RECORD").write_text("paths")
        (prefix / "pyvenv.cfg").write_text("home")
        (prefix / "bin/activate").write_text("where it lies")
        (prefix / "bin/python3").unlink()
        os.symlink("/opt/python/bin/python3", prefix / "bin/python3")
        assert seal.content_digest(seal.make(prefix), "3.11.2") == first

    def test_the_content_digest_has_what_a_program_sees(self, folder: Path) -> None:
        prefix = folder / "prefix"
        digests = {seal.content_digest(seal.make(prefix), "3.11.2"), seal.content_digest(seal.make(prefix), "3.12.1")}
        for change in ("edited", "added file", "missing link"):
            CHANGES[change][0](prefix)
            digests.add(seal.content_digest(seal.make(prefix), "3.11.2"))
        assert len(digests) == 5


class TestQuickVerdict:
    def test_a_fresh_verdict_is_trusted_for_a_while(self, folder: Path) -> None:
        first = quick_verdict(folder, 60)
        edit(folder / "prefix")
        assert quick_verdict(folder, 60) == first
        assert quick_verdict(folder, 0).findings == ["lib/a.py was edited"]

    def test_a_bad_verdict_is_not_remembered(self, folder: Path) -> None:
        content = (folder / "prefix/lib/a.py").read_text()
        facts = (folder / "prefix/lib/a.py").stat()
        edit(folder / "prefix")
        assert quick_verdict(folder, 60).findings
        (folder / "prefix/lib/a.py").write_text(content)
        os.utime(folder / "prefix/lib/a.py", ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert quick_verdict(folder, 60).findings == []

    @pytest.mark.parametrize("kept", ["", "{", '{"at": 99999999999, "findings": []}', '{"at": "soon"}', "[]"])
    def test_a_torn_one_or_one_of_the_future_is_not_trusted(self, folder: Path, kept: str) -> None:
        edit(folder / "prefix")
        (folder / "verified.json").write_text(kept)
        assert quick_verdict(folder, 60).findings


def test_a_file_that_was_replaced_by_one_of_the_same_size_and_time(folder: Path) -> None:
    path = folder / "prefix/lib/a.py"
    facts = path.stat()
    other = path.with_name("other")
    other.write_text("one = 2\n")
    other.chmod(facts.st_mode & 0o777)
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.rename(path)
    assert compare(folder, full=False) == ["lib/a.py was replaced by another file of the same size and time"]


def test_a_copy_of_the_whole_is_no_finding(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    assert compare(tmp_path / "copy", full=False) == compare(tmp_path / "copy", full=True) == []


def test_a_full_verdict_that_cannot_be_read_is_no_clean_one(folder: Path) -> None:
    assert seal.full_verdict(folder) is None
    seal.keep_full_verdict(folder, ["lib/a.py has other content"])
    assert (found := seal.full_verdict(folder)) is not None and found.findings == ["lib/a.py has other content"]
    (folder / "verified-full.json").write_bytes(b'{"at": 1')
    assert (torn := seal.full_verdict(folder)) is not None and "cannot be read" in torn.findings[0]
