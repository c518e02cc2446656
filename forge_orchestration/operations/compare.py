"""Two sets of outputs: which file differs, and where first. What is compared was written by analyses, and is only read."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

import msgspec

from forge_orchestration.executions.messages import printable
from forge_orchestration.executions.outputs import shown
from forge_orchestration.model.record import ExecutionRecord

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_TEXT = frozenset(
    {".txt", ".json", ".jsonl", ".md", ".html", ".svg", ".bed", ".vcf", ".gff", ".gtf", ".sam", ".log", ".yaml", *_DELIMITERS}
)
_LONGEST_LINE = 1 << 20
_MAX_SHOWN = 60
_BLOCK = 1 << 16


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """An output that is not the same, and a sentence without its subject: `differs first in row 3, column 'score': 1.5 became 1.6`."""

    path: str
    what: str


def differences(first: ExecutionRecord, second: ExecutionRecord) -> list[Difference]:
    """What of the outputs of two executions is not the same byte by byte, by path."""
    before, now = ({one.path: one.sha256 for one in record.outputs} for record in (first, second))
    found = []
    for path in sorted({*before, *now}):
        if path not in now:
            found.append(Difference(path=path, what="is not there any more"))
        elif path not in before:
            found.append(Difference(path=path, what="is new"))
        elif before[path] != now[path]:
            found.append(
                Difference(path=path, what=_first(Path(first.folder, "outputs", path), Path(second.folder, "outputs", path)))
            )
    return found


def _first(before: Path, now: Path) -> str:
    try:
        if before.suffix.lower() in _TEXT:
            return _first_in_text(before, now)
        return f"differs first at byte {_first_byte(before, now)}"
    except OSError as error:
        return f"differs, and cannot be read any more ({error.strerror})"


def _first_byte(before: Path, now: Path) -> int:
    offset = 0
    with open(before, "rb") as old, open(now, "rb") as new:
        while True:
            one, other = old.read(_BLOCK), new.read(_BLOCK)
            if one != other or not one:
                return offset + next(
                    (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
                )
            offset += len(one)


def _first_in_text(before: Path, now: Path) -> str:
    delimiter = _DELIMITERS.get(before.suffix.lower())
    with open(before, "rb") as old, open(now, "rb") as new:
        header: list[str] = []
        for number, (one, other) in enumerate(zip_longest(_lines(old), _lines(new)), 1):
            if number == 1 and delimiter is not None and one is not None:
                header = _cells(one, delimiter)
            if one == other:
                continue
            if one is None or other is None:
                return f"has {'more' if one is None else 'fewer'} lines: the first that only one of them has is line {number}"
            if delimiter is None:
                return f"differs first in line {number}: {_shown(one)} became {_shown(other)}"
            pairs = zip_longest(_cells(one, delimiter), _cells(other, delimiter), fillvalue="")
            at, (was, is_now) = next(((at, pair) for at, pair in enumerate(pairs) if pair[0] != pair[1]), (0, ("", "")))
            column = f"'{_shortened(header[at])}'" if at < len(header) and number > 1 else str(at + 1)
            return f"differs first in row {number}, column {column}: {_shortened(was)} became {_shortened(is_now)}"
    return "differs"  # in a line that is longer than what was looked at


def _lines(file: Iterable[bytes]) -> Iterable[bytes]:
    while line := file.readline(_LONGEST_LINE):  # type: ignore[attr-defined]
        yield line


def _cells(line: bytes, delimiter: str) -> list[str]:
    text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
    try:
        return next(csv.reader([text], delimiter=delimiter), [])
    except csv.Error:  # another kind of table than its name says
        return [text]


def _shown(line: bytes) -> str:
    return _shortened(shown(line.rstrip(b"\r\n")))


def _shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
