"""Collecting outputs: from a folder that an analysis wrote, taken for hostile, into the execution's own.

The folder is walked beneath an open descriptor and no link is ever followed; only plain files are copied and hashed in the
same pass, from the descriptor that was checked. Every process that could write there has ended before this begins.

Each file appears in `outputs/` whole or not at all: whoever is killed meanwhile leaves no half of one under its name.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from forge_orchestration.executions.folder import PARTIAL_OUTPUT, sync_folder
from forge_orchestration.model.record import OutputFacts, RejectedOutput
from forge_orchestration.model.sections import OutputSettings

_CHUNK = 1 << 20
_MAX_PATH_BYTES = 2048  # the kernel takes 4096 at once, and the execution's own folder comes before it
_MORE_ENTRIES = 1000  # than files that can be kept: the first of what cannot be is listed
_MAX_SHOWN = 200  # a record may list thousands of them
_KINDS = {
    stat.S_ISLNK: "a link", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket", stat.S_ISBLK: "a device", stat.S_ISCHR: "a device",
}  # fmt: skip


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What was kept, what was not, and which declared outputs are not among what was kept."""

    outputs: list[OutputFacts]
    rejected: list[RejectedOutput]
    missing: list[str]


def collect_outputs(
    source: Path, target: Path, declared: dict[str, str], caps: OutputSettings, max_bytes: int, *, hidden: bool = True
) -> Collected:
    """Copy what is beneath `source` to `target`, where it then outlasts a loss of power.

    Args:
        declared: Pattern (`*.csv`, `plots/*`) by output name; matched against paths beneath `source`.
        max_bytes: All outputs together; a sparse file counts with the size that a reader would see.
        hidden: Whether what lies at the top under a name that begins with a dot is meant too.

    Raises:
        OSError: `target` cannot be written.
    """
    outputs: list[OutputFacts] = []
    rejected: list[RejectedOutput] = []
    left = max_bytes
    root = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for path, parent_fd, name, why in _walk(root, caps):
            if name and path.startswith(b".") and not hidden:
                continue
            why = why or (f"more than {caps.max_files} files" if len(outputs) >= caps.max_files else "")
            if not why:
                facts, why = _copy(parent_fd, name, path, target, left)
                if facts is not None:
                    left -= facts.bytes
                    outputs.append(facts)
            if why and len(rejected) < caps.max_files:
                rejected.append(RejectedOutput(path=shown(path), why=why))
    finally:
        os.close(root)
    for folder in {target, *(parent for one in outputs for parent in (target / one.path).parents if parent.is_relative_to(target))}:
        sync_folder(folder)
    named, missing = _named(outputs, declared)
    return Collected(outputs=named, rejected=rejected, missing=missing)


def kept_outputs(folder: Path, declared: dict[str, str]) -> list[OutputFacts]:
    """What a collection that was cut short has kept in `folder`; every file there is whole."""
    outputs = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            relative = str(path.relative_to(folder))
            outputs.append(OutputFacts(name=relative, path=relative, sha256=digest, bytes=path.stat().st_size))
    return _named(outputs, declared)[0]


def _named(outputs: list[OutputFacts], declared: dict[str, str]) -> tuple[list[OutputFacts], list[str]]:
    """`outputs` in order, those that were declared under their declared names; and the patterns that nothing matches."""
    outputs = sorted(outputs, key=lambda output: output.path)
    names: dict[str, str] = {}
    missing = []
    for label, pattern in declared.items():
        matches = [output.path for output in outputs if fnmatch.fnmatchcase(output.path, pattern)]
        if not matches:
            missing.append(pattern)
        elif len(matches) == 1:
            names.setdefault(matches[0], label)
    return [msgspec.structs.replace(output, name=names.get(output.path, output.path)) for output in outputs], missing


def _walk(root: int, caps: OutputSettings) -> Iterator[tuple[bytes, int, bytes, str]]:
    """Path, parent's descriptor, name, and why it cannot be kept (or nothing), of each entry that is no folder."""
    # paths from the root of folders still to visit; each is opened step by step, so deep trees need no recursion
    waiting: list[bytes] = [b""]
    while waiting:
        folder = waiting.pop()
        try:
            fd = _open_folder(root, folder)
        except OSError as error:
            yield folder, root, b"", f"its folder cannot be read ({error.strerror})"
            continue
        try:
            with os.scandir(fd) as listing:  # never the whole list: a folder may have more entries than there is memory
                entries = [os.fsencode(entry.name) for entry in itertools.islice(listing, caps.max_files + _MORE_ENTRIES)]
            if len(entries) == caps.max_files + _MORE_ENTRIES:
                yield (
                    folder or b".",
                    root,
                    b"",
                    f"it has more than {caps.max_files + _MORE_ENTRIES - 1} entries, and the rest is not looked at",
                )
            for name in sorted(entries):
                path = folder + b"/" + name if folder else name
                try:
                    mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
                except OSError as error:
                    yield path, fd, name, f"it cannot be read ({error.strerror})"
                    continue
                if why := _bad_name(name) or ("its path is too long" if len(path) > _MAX_PATH_BYTES else ""):
                    yield path, fd, name, why
                elif stat.S_ISDIR(mode):
                    if path.count(b"/") + 1 >= caps.max_depth:
                        yield path, fd, name, f"it lies more than {caps.max_depth} folders deep"
                    elif len(waiting) > caps.max_files:
                        yield path, fd, name, f"more than {caps.max_files} folders"
                    else:
                        waiting.append(path)
                elif stat.S_ISREG(mode):
                    yield path, fd, name, ""
                else:
                    kind = next((text for test, text in _KINDS.items() if test(mode)), "no plain file")
                    yield path, fd, name, f"it is {kind}, not a file"
        finally:
            os.close(fd)


def _open_folder(root: int, path: bytes) -> int:
    fd = os.dup(root)
    for part in path.split(b"/") if path else ():
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _bad_name(name: bytes) -> str:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return "its name is not UTF-8"
    return "" if text.isprintable() else "its name has control characters"


def _copy(parent_fd: int, name: bytes, path: bytes, target: Path, left: int) -> tuple[OutputFacts | None, str]:
    try:
        # non-blocking: should it be a FIFO after all, the open does not hang, and the check below refuses it
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent_fd)
    except OSError as error:
        return None, f"it cannot be read ({error.strerror})"
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            return None, "it is no plain file"
        if facts.st_size > left:
            return None, "the outputs together are larger than the scratch limit"
        destination = target / os.fsdecode(path)
        destination.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        partial = target.with_name(PARTIAL_OUTPUT)
        try:
            with open(partial, "xb", buffering=0) as copy:
                # no more than was allowed for, though somebody may write to a checkpoint meanwhile
                while data := os.read(fd, min(_CHUNK, facts.st_size - size)):
                    digest.update(data)
                    size += len(data)
                    view = memoryview(data)
                    while view:
                        view = view[copy.write(view) :]
                after = os.fstat(fd)
                if (size, after.st_size, after.st_mtime_ns) != (facts.st_size, facts.st_size, facts.st_mtime_ns):
                    return None, "it was written to while it was read"
                os.fsync(copy.fileno())  # whatever becomes of the host: a name stands for a whole file
            os.link(partial, destination)  # unlike a rename, it replaces nothing
        finally:
            partial.unlink(missing_ok=True)
        text = path.decode()
        return OutputFacts(name=text, path=text, sha256=digest.hexdigest(), bytes=size), ""
    finally:
        os.close(fd)


def shown(path: bytes) -> str:
    """A path for people and JSON: what is not UTF-8 or not printable is written with backslash escapes."""
    text = path.decode("utf-8", "backslashreplace")
    whole = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return whole if len(whole) <= _MAX_SHOWN else f"{whole[: _MAX_SHOWN // 2]} ... {whole[-_MAX_SHOWN // 2 :]}"
