"""Logs: capped as they are written, followed as they grow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forge_orchestration.executions.logs import CappedLog, LogFollower, tail


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 5, 7, 16])
def test_a_log_keeps_beginning_and_end_and_counts_the_rest(tmp_path: Path, piece: int) -> None:
    log, data = CappedLog(tmp_path / "l", 10), b"1234567890abcdef"
    for at in range(0, len(data), piece):
        log.write(data[at : at + piece])
    log.write(b"")
    assert (tmp_path / "l").read_bytes() == b"12345"  # nothing that a follower reads changes
    log.close()
    assert (tmp_path / "l").read_bytes() == b"12345\n[forge: 6 bytes are left out here]\nbcdef"
    facts = log.facts()
    assert (facts.path, facts.bytes, facts.truncated_bytes) == (str(tmp_path / "l"), 10, 6)


def test_the_end_that_waits_in_memory_is_small(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "l", 64 << 20)
    for number in range(80):
        log.write(b"%c" % (number + 33) * (1 << 20))
    assert len(log._tail) <= 4 << 20
    log.close()
    facts = log.facts()
    assert (facts.bytes, facts.truncated_bytes) == (64 << 20, 16 << 20)
    content = (tmp_path / "l").read_bytes()
    assert content.startswith(b"!" * (1 << 20)) and content.endswith(b"p" * (1 << 20))


def test_exactly_the_limit_loses_nothing(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "l", 10)
    log.write(b"1234567890")
    log.close()
    assert log.facts().truncated_bytes == 0 and (tmp_path / "l").read_bytes() == b"1234567890"


def test_bytes_are_kept_as_they_are(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "l", 100)
    log.write(bytes(range(32)) + b"\xff\xfe")
    log.close()
    assert (tmp_path / "l").read_bytes() == bytes(range(32)) + b"\xff\xfe"


def test_it_is_a_new_file_and_closed_to_others(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "l", 10)
    log.close()
    assert (tmp_path / "l").stat().st_mode & 0o777 == 0o600
    (tmp_path / "secret").write_text("s")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    for taken in ("l", "link"):
        with pytest.raises(FileExistsError):
            CappedLog(tmp_path / taken, 10)


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """/dev/full refuses every write as a full disk does."""
    log = CappedLog(tmp_path / "l", 10)
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), log._fd)
    with pytest.raises(OSError, match="No space"):
        log.write(b"x")
    log.close()


def test_a_follower_sees_each_byte_once(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path / "l")
    assert follower.new_bytes() == b""
    with open(tmp_path / "l", "ab", buffering=0) as file:
        file.write(b"one")
        assert follower.new_bytes() == b"one"
        assert follower.new_bytes() == b""
        file.write(b"\xfftwo")
        assert follower.new_bytes() == b"\xfftwo"


@pytest.mark.parametrize(
    ("content", "most", "end"),
    [
        (b"", 10, b""),
        (b"short", 10, b"short"),
        (b"one\ntwo\nthree\n", 8, b"three\n"),
        (b"x" * 20, 8, b"x" * 8),
        (b"a\nb", 3, b"a\nb"),
    ],
)
def test_the_tail_begins_with_a_line(tmp_path: Path, content: bytes, most: int, end: bytes) -> None:
    (tmp_path / "l").write_bytes(content)
    assert tail(tmp_path / "l", most) == end


def test_the_tail_of_nothing(tmp_path: Path) -> None:
    assert tail(tmp_path / "nothing") == b""
