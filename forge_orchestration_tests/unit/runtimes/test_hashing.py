"""Many files at once: each digest is that of its file, and what is none has none."""

from __future__ import annotations

import hashlib
import os
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
