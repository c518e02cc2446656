"""The snapshot of an analysis' own files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from forge_orchestration.errors import SpecError
from forge_orchestration.executions.code import check_code, snapshot_code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "an'alysis ö"
    (made / "lib").mkdir(parents=True)
    (made / "run.py").write_text("print(1)\n")
    (made / "lib" / "-x\n.py").write_text("")
    return made


def test_files_and_folders_are_copied_and_readable_by_the_executions_uid(folder: Path, tmp_path: Path) -> None:
    os.chmod(folder / "run.py", 0o600)
    (folder / "tool").write_text("#!/bin/sh\n")
    os.chmod(folder / "tool", 0o4700)
    before = os.umask(0o077)
    try:
        snapshot_code(folder, tmp_path / "copy")
    finally:
        os.umask(before)
    modes = {
        os.path.relpath(path, tmp_path / "copy"): path.stat().st_mode & 0o7777
        for path in [tmp_path / "copy", *(tmp_path / "copy").rglob("*")]
    }
    assert modes == {".": 0o755, "run.py": 0o644, "tool": 0o755, "lib": 0o755, "lib/-x\n.py": 0o644}
    assert (tmp_path / "copy/run.py").read_text() == "print(1)\n"


def test_caches_and_repositories_stay_out(folder: Path, tmp_path: Path) -> None:
    for name in ("__pycache__", ".git", ".ipynb_checkpoints"):
        (folder / "lib" / name).mkdir()
        (folder / "lib" / name / "x").write_text("x")
    first, _ = snapshot_code(folder, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy/lib").iterdir()) == ["-x\n.py"]
    (folder / "lib/__pycache__/y").touch()
    assert snapshot_code(folder, tmp_path / "again")[0].sha256 == first.sha256


@pytest.mark.timeout(10)
def test_links_fifos_and_the_like_are_not_followed(folder: Path, tmp_path: Path) -> None:
    os.symlink("/etc/passwd", folder / "link")
    os.symlink("/etc", folder / "folder link")
    os.mkfifo(folder / "fifo")
    check_code(folder)
    snapshot_code(folder, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["lib", "run.py"]


def test_the_digest_is_of_names_and_contents_alone(folder: Path, tmp_path: Path) -> None:
    def digest() -> str:
        return snapshot_code(folder, tmp_path / f"copy {len(list(tmp_path.iterdir()))}")[0].sha256

    first = digest()
    os.utime(folder / "run.py", (0, 0))
    assert digest() == first
    (folder / "run.py").write_text("print(2)\n")
    second = digest()
    assert second != first
    (folder / "run.py").rename(folder / "lib/run.py")
    assert digest() not in (first, second)


def test_a_name_cannot_be_taken_for_a_content(tmp_path: Path) -> None:
    """`a` holding `b` and `ab` holding nothing are two different folders."""
    digests = set()
    for number, (name, content) in enumerate([("a", "b"), ("ab", ""), ("a", ""), ("b", "a")]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_text(content)
        digests.add(snapshot_code(tmp_path / str(number), tmp_path / f"copy{number}")[0].sha256)
    assert len(digests) == 4


def test_a_folder_that_holds_data_is_refused_before_it_is_copied(folder: Path) -> None:
    with open(folder / "big.bin", "wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(SpecError, match="65.0 MiB") as caught:
        check_code(folder)
    assert "input" in caught.value.hint


def test_what_git_knows(folder: Path, tmp_path: Path) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True, timeout=30
        ).stdout

    assert snapshot_code(folder, tmp_path / "0")[0].git_commit is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    facts, _ = snapshot_code(folder, tmp_path / "1")
    assert (facts.git_commit, facts.git_dirty) == (git("rev-parse", "HEAD").strip(), False)
    (folder / "run.py").write_text("changed")
    assert snapshot_code(folder, tmp_path / "2")[0].git_dirty is True
