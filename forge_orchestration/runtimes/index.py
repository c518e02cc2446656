"""The index of a seal: what `find` prints of every entry, so that a whole tree is compared as text.

That is how a launch can afford to look at every file: two processes of `find` (one a core) ask the kernel, and what they print is
held against what they printed when the runtime was built. A folder is read in the same order as long as nothing is put into it, so
the text is the same to the byte; where it is not, its records are compared as a set. The index only ever proves that nothing has
changed. What has, the seal says.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from forge_orchestration.executions.folder import write_atomically
from forge_orchestration.model.compiled import compiled

if TYPE_CHECKING:
    from forge_orchestration.runtimes.seal import Entry

_INDEX = "index"
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
# what it is looking at decides what of it matters: a folder's size and time change with any `__pycache__` that appears in it
_PRINT = ("-mindepth", "1", "-maxdepth", "1",
          "-type", "d", "-printf", r"%p//d %m %i\0", "-o", "-type", "l", "-printf", r"%p//l %m %i//%l\0",
          "-o", "-type", "f", "-printf", r"%p//f %s %m %T@ %i\0", "-o", "-printf", r"%p//%y\0")  # fmt: skip
# few enough that all cores end together, and enough that the starts of `find` do not count
_FOLDERS_A_CALL = 250
_PYCACHE = b"/__pycache__/"


@compiled
class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Some folders of a runtime, and what `find` prints of what lies in them: records, each ended by a zero byte."""

    folders: list[bytes]
    printed: bytes


def save(folder: Path, prefix: Path, entries: list[Entry]) -> None:
    """Keep the index of the build in `folder` beside its seal; none where `find` prints something else than the seal has."""
    folders = [b".", *(os.fsencode(f"./{entry.path}") for entry in entries if entry.kind == "d")]
    calls = [folders[start : start + _FOLDERS_A_CALL] for start in range(0, len(folders), _FOLDERS_A_CALL)]
    try:
        parts = [Part(call, printed) for call, printed in zip(calls, _print(prefix, calls), strict=True)]
    except (OSError, subprocess.CalledProcessError):
        return
    if set().union(*(_records(part.printed) for part in parts)) == set(map(_record, entries)):
        write_atomically(folder / _INDEX, msgspec.msgpack.encode(parts))


def proves_unchanged(folder: Path, prefix: Path) -> bool:
    """Whether every entry beneath `prefix` is as the index of the build in `folder` says, but for byte code that was added.

    False says only that it could not be shown.
    """
    try:
        parts = msgspec.msgpack.decode((folder / _INDEX).read_bytes(), type=list[Part])
        return bool(parts) and all(map(_is_same, parts, _print(prefix, [part.folders for part in parts])))
    except (OSError, msgspec.DecodeError, subprocess.CalledProcessError):
        return False


def _is_same(part: Part, printed: bytes) -> bool:
    if printed == part.printed:
        return True
    expected, found = _records(part.printed), _records(printed)
    return expected <= found and all(_PYCACHE in record.partition(b"//")[0] + b"/" for record in found - expected)


def _records(printed: bytes) -> set[bytes]:
    return set(printed.split(b"\0")[:-1])


def _record(entry: Entry) -> bytes:
    """What `find` prints for it, but of odd kinds, which the seal is asked about. No path holds two slashes in a row: no two entries
    have one record.
    """
    seconds, fraction = divmod(entry.mtime_ns, 10**9)
    facts = {
        "d": f"d {entry.mode:o} {entry.inode}",
        "l": f"l {entry.mode:o} {entry.inode}//{entry.target}",
        "f": f"f {entry.size} {entry.mode:o} {seconds}.{fraction:09d}0 {entry.inode}",
    }
    return os.fsencode(f"./{entry.path}//{facts.get(entry.kind, 'odd')}")


def _print(prefix: Path, calls: list[list[bytes]]) -> list[bytes]:
    """What `find` prints for each call's folders, in as many processes as there are cores.

    Raises:
        OSError, subprocess.CalledProcessError: There is no `find` that does, or a folder cannot be read.
    """
    from concurrent.futures import ThreadPoolExecutor  # a start within `verify_max_age_s` does not pay for it

    def call(folders: list[bytes]) -> bytes:
        command = [b"find", *folders, *map(os.fsencode, _PRINT)]
        done = subprocess.run(command, cwd=prefix, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        return done.stdout

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(call, calls))
