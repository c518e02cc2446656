"""Many files at once: each digest is that of its file, and what is none has none."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from forge_orchestration.runtimes.hashing import sha256_of


def test_every_size_and_name(tmp_path: Path) -> None:
    sizes = {f"{size} ö\n'\udcff": size for size in (0, 1, 2047, 2048, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000)}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(os.urandom(size))
    expected = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in sizes}
    assert sha256_of(tmp_path, sizes.items()) == expected


def test_none_at_all(tmp_path: Path) -> None:
    assert sha256_of(tmp_path, []) == {}


@pytest.mark.timeout(10)
def test_what_is_no_file_has_none_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    os.symlink("nothing", tmp_path / "dangling")
    (tmp_path / "whole").write_text("x")
    names = ("fifo", "folder", "dangling", "missing", "folder/missing", "whole/beneath", "x" * 5000, "whole")
    assert list(sha256_of(tmp_path, [(name, 1) for name in names])) == ["whole"]


def test_what_grew_since_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "grown").write_bytes(bytes(3_000_000))
    assert sha256_of(tmp_path, [("grown", 5)])["grown"] == hashlib.sha256(bytes(3_000_000)).hexdigest()


def test_a_path_that_is_too_long_only_with_its_root(tmp_path: Path) -> None:
    deep = "/".join(["d" * 250] * 16)  # 4,015 bytes; with the root before it more than the 4,096 that a path can have
    root = tmp_path / ("r" * 100)
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for name in deep.split("/"):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    assert sha256_of(root, [(f"{deep}/x", 0)]) == {f"{deep}/x": hashlib.sha256().hexdigest()}
    shutil.rmtree(root)


def test_a_root_that_is_gone(tmp_path: Path) -> None:
    assert sha256_of(tmp_path / "gone", [("x", 1)]) == {}
