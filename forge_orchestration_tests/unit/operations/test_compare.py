"""Where two files differ first, told in the terms of who reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge_orchestration.model.record import ExecutionRecord, OutputFacts
from forge_orchestration.operations.compare import Difference, differences


def execution(folder: Path, files: dict[str, bytes]) -> ExecutionRecord:
    outputs = []
    for name, content in files.items():
        path = folder / "outputs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        outputs.append(OutputFacts(name=name, path=name, sha256=str(hash(content)), bytes=len(content)))
    return ExecutionRecord(execution_id="x", analysis="a", outputs=outputs, folder=str(folder))


def compared(tmp_path: Path, before: dict[str, bytes], now: dict[str, bytes]) -> list[Difference]:
    return differences(execution(tmp_path / "a", before), execution(tmp_path / "b", now))


def test_the_same(tmp_path: Path) -> None:
    assert compared(tmp_path, {"a.csv": b"x\n1\n", "sub/b": b"\0"}, {"sub/b": b"\0", "a.csv": b"x\n1\n"}) == []


def test_files_that_came_and_went(tmp_path: Path) -> None:
    found = compared(tmp_path, {"a": b"", "b": b""}, {"b": b"", "c": b""})
    assert [(one.path, one.what) for one in found] == [("a", "is not there any more"), ("c", "is new")]


@pytest.mark.parametrize(
    ("name", "before", "now", "said"),
    [
        ("t.csv", b"a,b\n1,2\n3,4\n", b"a,b\n1,2\n3,5\n", "differs first in row 3, column 'b': 4 became 5"),
        ("t.csv", b'a,"b, c"\n"1\t",2\n', b'a,"b, c"\n"1\t",3\n', "differs first in row 2, column 'b, c': 2 became 3"),
        ("t.tsv", b"a\tb\n1\t2\n", b"a\tB\n1\t2\n", "differs first in row 1, column 2: b became B"),
        ("t.csv", b"a\n1\n", b"a\n1,9\n", "differs first in row 2, column 2:  became 9"),
        ("t.csv", b"a\n1\n2\n", b"a\n1\n", "has fewer lines: the first that only one of them has is line 3"),
        ("t.csv", b"a\n", b"a\n1\n", "has more lines: the first that only one of them has is line 2"),
        ("t.csv", b"a\rb\rc", b"a\rb\rd", "differs first in row 1, column 1: a\ufffdb\ufffdc became a\ufffdb\ufffdd"),
        ("t.txt", b"one\ntwo\n", b"one\ntw\x1b[31m\n", "differs first in line 2: two became tw\\x1b[31m"),
        ("t.bin", b"abc", b"abd", "differs first at byte 2"),
        ("t.bin", b"abc", b"abcd", "differs first at byte 3"),
        ("t.bin", b"x" * 200_000 + b"a", b"x" * 200_000 + b"b", "differs first at byte 200000"),
        ("t.txt", b"a" * 3_000_000, b"a" * 2_999_999 + b"b", f"differs first in line 3: {'a' * 60}… became {'a' * 60}…"),
    ],
)  # fmt: skip
def test_where_first(tmp_path: Path, name: str, before: bytes, now: bytes, said: str) -> None:
    (found,) = compared(tmp_path, {name: before}, {name: now})
    assert (found.path, found.what) == (name, said)


def test_one_that_is_gone_meanwhile(tmp_path: Path) -> None:
    first, second = execution(tmp_path / "a", {"t.csv": b"a\n"}), execution(tmp_path / "b", {"t.csv": b"b\n"})
    (tmp_path / "a/outputs/t.csv").unlink()
    assert differences(first, second)[0].what == "differs, and cannot be read any more (No such file or directory)"
