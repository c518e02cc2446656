"""The seal: the list of every file of a runtime, made when it is built, and what is compared with it later.

*Quick* compares kind, size, mode, inode and modification time of every entry with the seal; *full* reads every file. `__pycache__`
that appears later is no finding: Python writes it, and never from inside a sandbox.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.executions.folder import write_atomically
from forge_orchestration.model.compiled import compiled
from forge_orchestration.runtimes import index
from forge_orchestration.runtimes.hashing import sha256_of

_INSTALLER_FILES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "pyvenv.cfg", ".lock", "CACHEDIR.TAG")
_MOST_FINDINGS = 20
_SEAL = "seal.json"


@compiled
class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file, folder or link: path, kind (`f`, `d`, `l`, `o`), size, mode, mtime in ns, link target, sha256, inode.

    The inode is 0 where it is not known. It is no part of any digest, and is compared only where the whole is not a copy.
    """

    path: str
    kind: str
    size: int
    mode: int
    mtime_ns: int
    target: str = ""
    sha256: str = ""
    inode: int = 0


class Tree(msgspec.Struct, frozen=True):
    """The files of a runtime: all that lies beneath `prefix`, or (not `whole`) those beneath it that the seal lists."""

    prefix: Path
    whole: bool = True


@compiled
class Verdict(msgspec.Struct, frozen=True):
    """When a comparison was made, and what it found: sentences that each name a file."""

    at: float
    findings: list[str]


def is_byte_code(path: str) -> bool:
    """Whether `path`, beneath a prefix, is a `__pycache__` or lies in one: a name that only contains the word does not."""
    return "__pycache__" in path.split("/")


def make(prefix: Path, listed: Iterable[str] | None = None) -> list[Entry]:
    """The seal of all that is beneath `prefix`, or of what is `listed` there, sorted by path. Reads every file.

    Raises:
        RuntimeCatalogError: A file cannot be read.
    """
    entries = _read(prefix, scan(prefix) if listed is None else _scan_listed(prefix, listed))
    if unread := next((one.path for one in entries if one.kind == "f" and not one.sha256), None):
        raise RuntimeCatalogError(f"{prefix / unread} cannot be read.")
    return entries


def read(folder: Path, tree: Tree) -> list[Entry]:
    """Every entry of the build in `folder` as it is now, with digests; a file that cannot be read has none."""
    return _read(tree.prefix, _scan_tree(tree, load(folder)))


def _read(prefix: Path, scanned: Iterable[Entry]) -> list[Entry]:
    entries = sorted(scanned, key=lambda one: one.path)
    digests = sha256_of(prefix, ((one.path, one.size) for one in entries if one.kind == "f"))
    return [msgspec.structs.replace(one, sha256=digests.get(one.path, "")) if one.kind == "f" else one for one in entries]


def scan(prefix: Path) -> Iterator[Entry]:
    """Every entry beneath `prefix`, in no order, without digests; links are not followed."""
    root = os.fspath(prefix)
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        head = f"{folder}/" if folder else ""
        # beneath a descriptor: to look up the whole path of each file takes half as long again
        fd = os.open(os.path.join(root, folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(fd) as items:
                for item in items:
                    entry = _entry(head + item.name, item.stat(follow_symlinks=False), fd, item.name)
                    if entry.kind == "d":
                        waiting.append(entry.path)
                    yield entry
        finally:
            os.close(fd)


def _scan_tree(tree: Tree, sealed: Iterable[Entry]) -> Iterator[Entry]:
    return scan(tree.prefix) if tree.whole else _scan_listed(tree.prefix, (entry.path for entry in sealed))


def _scan_listed(prefix: Path, paths: Iterable[str]) -> Iterator[Entry]:
    """Those of `paths` that are there, sorted."""
    for path in sorted(paths):
        full = os.path.join(prefix, path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            yield _entry(path, os.lstat(full), None, full)


def _entry(path: str, facts: os.stat_result, folder_fd: int | None, name: str) -> Entry:
    """The entry of what is called `name` in the folder that is open."""
    mode, permissions, size = facts.st_mode, stat.S_IMODE(facts.st_mode), facts.st_size
    if stat.S_ISREG(mode):
        return Entry(path, "f", size, permissions, facts.st_mtime_ns, "", "", facts.st_ino)
    if stat.S_ISDIR(mode):
        return Entry(path, "d", 0, permissions, 0, "", "", facts.st_ino)
    if stat.S_ISLNK(mode):
        return Entry(path, "l", size, permissions, 0, os.readlink(name, dir_fd=folder_fd), "", facts.st_ino)
    return Entry(path, "o", size, permissions, 0, "", "", facts.st_ino)


def seal_digest(entries: list[Entry]) -> str:
    """What a runtime is verified against: every path, kind, size, mode, target and content."""
    digest = hashlib.sha256()
    for entry in sorted(entries, key=lambda one: one.path):
        digest.update(msgspec.json.encode([entry.path, entry.kind, entry.size, entry.mode, entry.target, entry.sha256]))
    return digest.hexdigest()


def content_digest(entries: list[Entry], python: str, original: Mapping[str, str] | None = None) -> str:
    """What a runtime is: the same for two builds of one lock. Without byte code, installer records and activation scripts.

    Args:
        python: Version of the interpreter; or whatever else it is that the files do not say.
        original: Digests to take, by path, for files into which an installer has written where the runtime lies.
    """
    import platform  # builds only: no start pays for it

    original = original or {}
    digest = hashlib.sha256(f"python {python} {platform.machine()} {' '.join(platform.libc_ver())}".encode())
    for entry in sorted(entries, key=lambda one: one.path):
        name = entry.path.rsplit("/", 1)[-1]
        derived = (
            is_byte_code(entry.path)
            or entry.path.startswith("conda-meta/")
            or name in _INSTALLER_FILES
            or name.startswith(("activate", "deactivate"))
        )
        # where the interpreter is installed is not what it is
        target = "" if entry.path in ("bin/python", "bin/python3") or entry.path.startswith("bin/python3.") else entry.target
        if entry.kind != "d" and not derived:
            digest.update(msgspec.json.encode([entry.path, entry.kind, target, original.get(entry.path, entry.sha256)]))
    return digest.hexdigest()


def save(folder: Path, tree: Tree, entries: list[Entry]) -> None:
    """Keep the seal of the build in `folder`, and its index, which is all that a quick comparison reads where nothing has changed."""
    write_atomically(folder / _SEAL, msgspec.json.encode(entries))
    if tree.whole:
        index.save(folder, tree.prefix, entries)


def load(folder: Path) -> list[Entry]:
    """The seal of the build in `folder`.

    Raises:
        RuntimeCatalogError: It is not there or torn.
    """
    try:
        return msgspec.json.decode((folder / _SEAL).read_bytes(), type=list[Entry])
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise RuntimeCatalogError(f"The seal {folder}/{_SEAL} cannot be read: {error}.", "Build the runtime again.") from error


def quick_verdict(folder: Path, look: Callable[[], list[str]], max_age_s: float) -> Verdict:
    """What a quick look at the build in `folder` finds, or its last verdict if that is younger than `max_age_s` and found nothing."""
    path = folder / "verified.json"
    try:
        last = msgspec.json.decode(path.read_bytes(), type=Verdict)
        if not last.findings and 0 <= time.time() - last.at < max_age_s:
            return last
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):
        pass
    verdict = Verdict(at=time.time(), findings=look())
    try:
        write_atomically(path, msgspec.json.encode(verdict))
    except OSError:
        pass  # a full disk costs the next one a comparison, no more
    return verdict


def full_verdict(folder: Path) -> Verdict | None:
    """The last full verification of the build in `folder`; None if there was none since it was built."""
    try:
        return msgspec.json.decode((folder / "verified-full.json").read_bytes(), type=Verdict)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:  # it may have held findings
        return Verdict(at=0.0, findings=[f"{folder}/verified-full.json cannot be read ({error})"])


def keep_full_verdict(folder: Path, findings: list[str]) -> Verdict:
    """Keep what a full verification has found just now: with findings, the build is not used until one finds nothing."""
    verdict = Verdict(at=time.time(), findings=findings)
    write_atomically(folder / "verified-full.json", msgspec.json.encode(verdict))
    return verdict


def quarantine(folder: Path) -> str:
    """Why the build in `folder` is not to be used, whatever is found of it; empty if it may be."""
    try:
        return (folder / "quarantine").read_text("utf-8").strip() or "no reason given"
    except FileNotFoundError:
        return ""


def compare(folder: Path, tree: Tree, *, full: bool) -> list[str]:
    """What differs between the files of the build in `folder` and its seal: at most a few sentences, each with the file's name."""
    if not full and tree.whole and index.proves_unchanged(folder, tree.prefix):
        return []
    sealed = load(folder)
    scanned = _scan_tree(tree, sealed)
    return _differences(tree, sealed, _read(tree.prefix, scanned) if full else scanned, full)


def differences(folder: Path, tree: Tree, entries: Iterable[Entry]) -> list[str]:
    """The same in full, of what was read there already."""
    return _differences(tree, load(folder), entries, True)


def _differences(tree: Tree, seal: list[Entry], entries: Iterable[Entry], full: bool) -> list[str]:
    missing = {entry.path: entry for entry in seal}
    changed: list[str] = []
    added: list[str] = []
    inodes = _is_the_original(tree, missing)
    try:
        for entry in entries:
            wanted = missing.pop(entry.path, None)
            if wanted == entry:
                continue
            if wanted is None:
                if not is_byte_code(entry.path):
                    added.append(f"{entry.path} was added")
            elif why := _difference(wanted, entry, full, inodes):
                changed.append(f"{entry.path} {why}")
    except OSError as error:
        changed.append(f"{error.filename} cannot be read ({error.strerror})")
    gone = [f"{path} is missing" for path in missing if not is_byte_code(path)]
    # what was added last: a folder of new files must not hide an edit
    return [*sorted(changed), *sorted(gone), *sorted(added)][:_MOST_FINDINGS]


def _difference(wanted: Entry, entry: Entry, full: bool, inodes: bool) -> str:
    if entry.kind != wanted.kind:
        return "was replaced by another kind of file"
    if entry.mode != wanted.mode:
        return f"has mode {entry.mode:o} instead of {wanted.mode:o}"
    if entry.target != wanted.target:
        return "links elsewhere"
    if is_byte_code(entry.path) and not full:
        return ""
    if entry.size != wanted.size or entry.mtime_ns != wanted.mtime_ns:
        return "was edited"
    if inodes and entry.inode != wanted.inode and entry.kind == "f":
        return "was replaced by another file of the same size and time"
    if full and entry.kind == "f" and not entry.sha256:
        return "cannot be read"
    if full and entry.sha256 != wanted.sha256:
        return "has other content, though size and time are the same"
    return ""


def changed(first: list[Entry], second: list[Entry]) -> list[str]:
    """Paths of files and links that two seals do not have alike, byte code apart."""
    one, other = (
        {entry.path: (entry.kind, entry.target, entry.sha256) for entry in entries if entry.kind != "d"}
        for entries in (first, second)
    )
    return sorted(path for path in {*one, *other} if one.get(path) != other.get(path) and not is_byte_code(path))


def _is_the_original(tree: Tree, sealed: dict[str, Entry]) -> bool:
    """Whether this is what was sealed, and no copy of it, in which every inode is another."""
    if not tree.whole:
        return False
    top = [entry for entry in sealed.values() if entry.kind == "d" and "/" not in entry.path]
    try:
        return bool(top) and all(os.lstat(tree.prefix / entry.path).st_ino == entry.inode for entry in top)
    except OSError:
        return False
