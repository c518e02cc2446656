"""The content of files and folders whose content must not change, as one look finds it.

Every file is read at every look. Size and time alone would be quicker, and an edit that keeps both would not be seen. Links are not
followed: where one points is its content.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from forge_orchestration.model.guard import FileKind, FileState
from forge_orchestration.runtimes.hashing import sha256_of

_KINDS: dict[int, FileKind] = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


def look_at(paths: Iterable[Path]) -> dict[str, FileState]:
    """The state of each path, and of what is beneath it (of folders there, only those that cannot be read), by absolute path."""
    states = {name: state for path in paths for name, state in _beneath(os.fspath(path))}
    files = {name: state for name, state in states.items() if state.kind == "file"}
    digests = sha256_of(Path("/"), ((name.removeprefix("/"), state.bytes or 0) for name, state in files.items()))
    for name, state in files.items():
        if (digest := digests.get(name.removeprefix("/"))) is not None:
            states[name] = msgspec.structs.replace(state, sha256=digest)
        else:  # since a moment ago it went, became something else, or it cannot be read
            now = _state(name)
            states[name] = FileState(kind="unreadable") if now.kind == "file" else now
    return states


def shown(path: str) -> str:
    """A path as text that can be written down and printed, whatever bytes it has."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _beneath(top: str) -> Iterator[tuple[str, FileState]]:
    state = _state(top)
    yield top, state
    waiting = [top] if state.kind == "folder" else []
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                found = list(entries)
        except (FileNotFoundError, NotADirectoryError):  # since a moment ago
            yield folder, _state(folder)
            continue
        except OSError:
            yield folder, FileState(kind="unreadable")
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                yield entry.path, _state(entry.path)


def _state(path: str) -> FileState:
    try:
        facts = os.lstat(path)
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "other")
        target = shown(os.readlink(path)) if kind == "link" else None
    except (FileNotFoundError, NotADirectoryError):
        return FileState(kind="missing")
    except OSError:
        return FileState(kind="unreadable")
    if kind == "folder":
        return FileState(kind=kind)
    return FileState(kind=kind, bytes=facts.st_size, mtime=facts.st_mtime, link_target=target)
