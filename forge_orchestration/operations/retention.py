"""Which ended executions are removed, and which never: what others read, what is pinned, the last results.

Nothing happens without being asked for, and what would happen can be seen first. Removed are folders; the rows stay for statistics.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import msgspec

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError, SpecError
from forge_orchestration.executions import publication
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.upstream import EXECUTION
from forge_orchestration.model.reasons import Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.sandbox.checkpoints import discard, held
from forge_orchestration.settings import Settings

_PINNED = "pinned"
_GOING = ".removing-"


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What may go.

    Attributes:
        older_than_s: What ended longer ago; None: age is no reason.
        max_bytes: The oldest, until all of them together take no more than this; None: size is no reason.
        keep_last: So many of the last results of each analysis, and of each of its partitions, stay in any case.
    """

    older_than_s: float | None = None
    max_bytes: int | None = None
    keep_last: int = 1


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """One execution, or the checkpoints of one fingerprint, that may go, and what for."""

    what: str
    analysis: str
    ended_at: float
    bytes: int
    why: str


class _Kept(msgspec.Struct, kw_only=True):
    """An execution as it lies on the disk. `files`: bytes and number of names by inode."""

    execution_id: str
    analysis: str
    partition: str | None
    status: str
    ended_at: float
    files: dict[int, tuple[int, int]]
    references: set[str]
    is_pinned: bool


def pin(folder: ExecutionFolder, why: str) -> None:
    """Keep an execution from being removed."""
    folder.read_record()
    (folder.path / _PINNED).write_text(f"{why}\n")


def unpin(folder: ExecutionFolder) -> None:
    """Let it be removed again."""
    folder.read_record()
    (folder.path / _PINNED).unlink(missing_ok=True)


def removable(engine: Engine, rules: Rules, now: float | None = None) -> list[Removal]:
    """What the rules let go, the oldest first.

    Raises:
        SpecError: The rules make no sense.
    """
    if rules.keep_last < 0:
        raise SpecError(f"--keep-last is {rules.keep_last}; it must be zero or more.")
    now = time.time() if now is None else now
    there = _executions(engine)
    protected = _protected(there, rules.keep_last) | set(publication.marked(engine.settings))
    going: dict[str, str] = {}
    candidates = sorted(
        (one for one in there.values() if one.execution_id not in protected), key=lambda one: (one.ended_at, one.execution_id)
    )
    if rules.older_than_s is not None:
        going = {one.execution_id: "age" for one in candidates if one.ended_at < now - rules.older_than_s}
    if rules.max_bytes is not None:
        left, names = _bytes(there.values()), _Names()
        for one in candidates:
            if one.execution_id not in going and left <= rules.max_bytes:
                continue
            going.setdefault(one.execution_id, "size")
            left -= names.remove(one)
    for execution_id in _still_read(there, going):
        del going[execution_id]
    names = _Names()
    removals = [
        Removal(
            what=one.execution_id,
            analysis=one.analysis,
            ended_at=one.ended_at,
            bytes=names.remove(one),
            why=going[one.execution_id],
        )
        for one in candidates
        if one.execution_id in going
    ]
    return removals + _checkpoints(engine.settings, rules, now)


def remove(engine: Engine, removals: Iterable[Removal]) -> list[Removal]:
    """Remove them, and write down what was removed, in `removed.jsonl` of the home; returns what is gone."""
    gone = []
    for one in removals:
        with contextlib.suppress(FileNotFoundError):
            if _remove(engine, one):
                gone.append(one)
                with open(engine.settings.home / "removed.jsonl", "ab") as log:
                    log.write(msgspec.json.encode({"at": time.time(), **msgspec.to_builtins(one)}) + b"\n")
    return gone


def _remove(engine: Engine, one: Removal) -> bool:
    settings = engine.settings
    if os.sep in one.what:  # checkpoints
        place = settings.home / one.what
        with held(place, wait=False) as alone:
            if not alone or _last_use(place) > one.ended_at:  # somebody goes on with them after all
                return False
            discard(place)
        return True
    folder = ExecutionFolder(settings.executions_dir, one.what)
    with folder.locked(wait=False) as ours:  # whoever takes its result now, or looks at it, holds that
        if not ours:
            return False
        going = folder.path.with_name(f"{_GOING}{folder.id}")
        os.rename(folder.path, going)  # nobody finds half of it
        engine.store.forget(folder.id)
    shutil.rmtree(going)
    return True


def remove_torn(settings: Settings) -> list[str]:
    """What a removal that was killed has left."""
    torn = list(settings.executions_dir.glob(f"{_GOING}*"))
    gone = [path for pattern in (".gone-*", "*/.gone-*") for path in settings.checkpoints_dir.glob(pattern)]
    for path in (*torn, *gone):
        shutil.rmtree(path, ignore_errors=True)
    return [f"rest of execution {path.name.removeprefix(_GOING)}" for path in torn] + [
        f"rest of a checkpoint {path.name}" for path in gone
    ]


def _executions(engine: Engine) -> dict[str, _Kept]:
    found = {}
    for row in engine.store.list(limit=-1):
        folder = ExecutionFolder(engine.settings.executions_dir, str(row["execution_id"]))
        try:
            record = folder.read_record()
        except ForgeError:  # what cannot be read is not judged
            continue
        found[folder.id] = _Kept(
            execution_id=folder.id, analysis=record.analysis, partition=record.partition, status=str(record.status),
            ended_at=record.ended_at or time.time(), files=_files(folder.path), is_pinned=(folder.path / _PINNED).exists(),
            references=_references(record),
        )  # fmt: skip
    return found


def _references(record: ExecutionRecord) -> set[str]:
    """What it has read; and whose result it has taken, which alone can be taken again and replayed."""
    read = {item.source.removeprefix(EXECUTION).partition("/")[0] for item in record.inputs if item.source.startswith(EXECUTION)}
    return read | ({record.cache.source_execution_id} if record.cache.source_execution_id is not None else set())


def _files(folder: Path) -> dict[int, tuple[int, int]]:
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                facts = os.lstat(os.path.join(root, name))
                found[facts.st_ino] = (facts.st_blocks * 512, facts.st_nlink)
    return found


def _bytes(executions: Iterable[_Kept]) -> int:
    sizes = {inode: size for one in executions for inode, (size, _) in one.files.items()}
    return sum(sizes.values())


class _Names:
    """How many names of each file are gone: its room is free when the last one is."""

    def __init__(self) -> None:
        self._gone: dict[int, int] = defaultdict(int)

    def remove(self, one: _Kept) -> int:
        """Bytes that are freed when this execution goes after those before."""
        freed = 0
        for inode, (size, links) in one.files.items():
            self._gone[inode] += 1
            freed += size if self._gone[inode] == links else 0
        return freed


def _protected(there: dict[str, _Kept], keep_last: int) -> set[str]:
    protected = {one.execution_id for one in there.values() if one.is_pinned or not Status(one.status).is_final}
    last: dict[tuple[str, str | None], list[_Kept]] = defaultdict(list)
    for one in sorted(there.values(), key=lambda one: (one.ended_at, one.execution_id), reverse=True):
        if one.status == Status.SUCCEEDED:
            last[one.analysis, one.partition].append(one)
    for results in last.values():
        protected.update(one.execution_id for one in results[:keep_last])
    return protected


def _still_read(there: dict[str, _Kept], going: dict[str, str]) -> set[str]:
    """Those that one which stays has read: they stay too, and then what they have read."""
    staying = [one for one in there.values() if one.execution_id not in going]
    read: set[str] = set()
    while staying:
        for execution_id in staying.pop().references:
            if execution_id in going and execution_id not in read:
                read.add(execution_id)
                staying.append(there[execution_id])
    return read


def _checkpoints(settings: Settings, rules: Rules, now: float) -> list[Removal]:
    """Those that nobody has gone on with for so long."""
    if rules.older_than_s is None:
        return []
    found = []
    for folder in sorted(path for path in settings.checkpoints_dir.glob("*") if not path.name.startswith(".")):
        if (used := _last_use(folder)) < now - rules.older_than_s:
            size = sum(size for size, _ in _files(folder).values())
            what = f"{settings.checkpoints_dir.name}/{folder.name}"
            found.append(Removal(what=what, analysis="", ended_at=used, bytes=size, why="age"))
    return found


def _last_use(folder: Path) -> float:
    """When something was put into it last; now, if it is just being changed."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except FileNotFoundError:
        return time.time()
