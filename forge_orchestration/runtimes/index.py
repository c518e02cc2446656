"""The index of a seal: a record for every entry, just as `find` prints it, so that a whole tree is compared as text.

That is how a launch can afford to look at every file: two processes of `find` (one a core) ask the kernel, and what they print is
held against the index without taking it apart. The index only ever proves that nothing has changed. What has, the seal says.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from forge_orchestration.executions.folder import write_atomically

if TYPE_CHECKING:
    from forge_orchestration.runtimes.seal import Entry

_INDEX = "index"
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
# what it is looking at decides what of it matters: a folder's size and time change with any `__pycache__` that appears in it
_PRINT = ("-mindepth", "1", "-maxdepth", "1",
          "-type", "d", "-printf", r"%p//d %m %i\0", "-o", "-type", "l", "-printf", r"%p//l %m %i//%l\0",
          "-o", "-type", "f", "-printf", r"%p//f %s %m %T@ %i\0", "-o", "-printf", r"%p//%y\0")  # fmt: skip
_IS_FOLDER = b"//d "
# as many folders as fit a command line, were each path as long as paths can be
_FOLDERS_A_CALL = 500
_PYCACHE = b"__pycache__"


def save(folder: Path, entries: Iterable[Entry]) -> None:
    """Keep the index of the build in `folder` beside its seal."""
    write_atomically(folder / _INDEX, b"\0".join(map(_record, entries)))


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


def proves_unchanged(folder: Path, prefix: Path) -> bool:
    """Whether every entry beneath `prefix` is as the index of the build in `folder` says, but for byte code that was added.

    False says only that it could not be shown: there is no index, or no `find` that prints records.
    """
    try:
        expected = (folder / _INDEX).read_bytes().split(b"\0")
        folders = [b".", *(record.partition(b"//")[0] for record in expected if _IS_FOLDER in record)]
        cores = len(os.sched_getaffinity(0))
        a_call = max(1, min(_FOLDERS_A_CALL, -(-len(folders) // cores)))
        calls = [folders[start : start + a_call] for start in range(0, len(folders), a_call)]
        with ThreadPoolExecutor(cores) as pool:
            printed = b"".join(pool.map(lambda call: _print(prefix, call), calls)).split(b"\0")
    except (OSError, subprocess.CalledProcessError):
        return False
    printed.pop()  # each record ends with a zero byte
    missing = set(expected)
    added = [record for record in printed if record not in missing]
    missing.difference_update(printed)
    return not missing and all(_PYCACHE in record.partition(b"//")[0] for record in added)


def _print(prefix: Path, folders: list[bytes]) -> bytes:
    command = [b"find", *folders, *map(os.fsencode, _PRINT)]
    return subprocess.run(command, cwd=prefix, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
