"""Unit strings at the edges."""

from __future__ import annotations

import pytest

from forge_orchestration.errors import SpecError
from forge_orchestration.units import format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GiB", 2 * 2**30), ("2 GiB", 2 * 2**30), (" 256MiB ", 256 * 2**20), ("1.5G", 3 * 2**29), ("500MB", 500 * 10**6),
        ("1kB", 1000), ("1KB", 1000), ("1K", 1024), ("1TiB", 2**40), ("17", 17), ("17B", 17), (17, 17), (17.9, 17), (0, 0), ("0", 0),
    ],
)  # fmt: skip
def test_sizes(text: object, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30min", 1800), ("30m", 1800), ("90s", 90), ("1.5h", 5400), ("1d", 86400), ("250ms", 0.25), ("5", 5), (0.5, 0.5), ("0s", 0)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


MALFORMED = [
    "", "GiB", "-1GiB", "- 1", "1 2", "2gib", "2 GiBs", "1e3", "0x10", "1,5GiB", "1.GiB", ".5GiB", "٣GiB", "1\nGiB\n;", "inf", "nan",
    "∞", "2GiB; rm", "1_000", "+5", "1" * 400,
]  # fmt: skip


@pytest.mark.parametrize("text", [*MALFORMED, "30min"], ids=lambda text: ascii(text)[:12])
def test_malformed_sizes_are_refused_by_name(text: str) -> None:
    with pytest.raises(SpecError, match="the memory limit") as caught:
        parse_bytes(text, "the memory limit")
    assert "2GiB" in caught.value.hint


@pytest.mark.parametrize("text", [*MALFORMED, "2GiB", "1 minute"], ids=lambda text: ascii(text)[:12])
def test_malformed_durations_are_refused_by_name(text: str) -> None:
    with pytest.raises(SpecError, match="the wall limit") as caught:
        parse_seconds(text, "the wall limit")
    assert "30min" in caught.value.hint


@pytest.mark.parametrize(
    "value",
    [-1, -0.5, float("nan"), float("inf"), float("-inf"), True, None, [], {}, b"2GiB", 10**400, "9" * 308 + "TiB", "9" * 308 + "d"],
    ids=lambda value: repr(value)[:12],
)
@pytest.mark.parametrize("parse", [parse_bytes, parse_seconds])
def test_values_that_are_no_amount_are_refused(parse, value: object) -> None:
    with pytest.raises(SpecError):
        parse(value)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (268435456, "256.0 MiB"), (2**31, "2.0 GiB"), (2**42, "4096.0 GiB")],
)
def test_sizes_for_people(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(1800, "30min"), (90, "90s"), (7200, "2h"), (86400, "1d"), (0.25, "0.25s"), (0, "0s"), (5, "5s")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
    assert parse_seconds(text) == pytest.approx(seconds)
