"""Inputs: which file or folder of the host a name stands for, whether it may be read, and what is in it."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import msgspec

from forge_orchestration.errors import SpecError
from forge_orchestration.executions import upstream
from forge_orchestration.executions.openat2 import open_without_links
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.record import InputFacts
from forge_orchestration.settings import Settings

_KINDS = {stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket", stat.S_ISBLK: "a device", stat.S_ISCHR: "a device"}
_PACKAGE, SNAPSHOT = "package://", "snapshot://"
_FILE = "file://"
_WEB = ("http://", "https://", "s3://")
_PATTERN = re.compile(r"[*?\[]")
_MOST_FILES = 1000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INPUT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# file systems tell times in ticks: what is written in the tick in which it was read has the times that it had before
_TICK_NS = 100_000_000


def check_input_name(name: str, where: str) -> None:
    """Refuse what cannot be a file's name beneath `/forge/inputs`.

    Raises:
        SpecError: Names it.
    """
    if not _INPUT_NAME.fullmatch(name):
        raise SpecError(f"'{name[:80]}' in {where} cannot be an input's name.", "Use letters, digits, '_', '-' and '.'.")


class DigestCache(Protocol):
    """Remembers digests of files by what a `stat` says of them."""

    def digest(self, facts: os.stat_result) -> str | None:
        """The digest of a file that has not changed since it was kept."""

    def keep_digest(self, facts: os.stat_result, sha256: str) -> None:
        """Keep it."""


@compiled
class ResolvedInput(msgspec.Struct, frozen=True, kw_only=True):
    """An input that was checked: its real path, and the identity of the file that was read for its digest.

    Attributes:
        stamp: What the kernel said of the file, or of each in the folder, when it was read: inode, size and times.
        owner: User and group of a file or folder that others than them may not read; None if everybody may.
    """

    name: str
    path: str
    device: int
    inode: int
    facts: InputFacts
    stamp: str = ""
    owner: tuple[int, int] | None = None

    @property
    def is_here(self) -> bool:
        """Whether there is a file; one that is named by a URL may have to be fetched first, though its digest is known."""
        return self.inode != 0


def resolve_inputs(
    name: str, source: str, settings: Settings, site_packages: Path | None, cache: DigestCache, analysis_folder: str | None = None
) -> list[ResolvedInput]:
    """An input, or each file that a pattern such as `/data/*/reads.fastq` stands for, called `NAME/PATH` then.

    PATH is what is behind the last folder that the pattern names. `**` stands for folders however deep. Arguments as those of
    `resolve_input`.

    Raises:
        SpecError: As there; there is no such file, or too many.
    """
    path = os.path.expanduser(source)
    if "://" in source or not _PATTERN.search(path) or os.path.lexists(path):
        return [resolve_input(name, source, settings, site_packages, cache, analysis_folder)]
    check_input_name(name, "the request")
    base = os.path.abspath(path[: _PATTERN.search(path).start()].rpartition("/")[0] or "/")  # type: ignore[union-attr]
    elsewhere = SpecError(
        f"Input '{name}' ({source}) stands for files that are not in the folders that inputs may come from.", _roots_hint(settings)
    )
    if not _is_in_place(os.path.realpath(base), settings, analysis_folder):
        raise elsewhere
    found = []
    for one in glob.iglob(os.path.abspath(path), recursive=True):
        if not os.path.isfile(one):
            continue
        if not _is_in_place(os.path.realpath(one), settings, analysis_folder):
            raise elsewhere  # a link has led there; what is called how in other folders is nobody's to know
        found.append(one)
        if len(found) > _MOST_FILES:
            raise SpecError(f"Input '{name}' ({source}) is more than {_MOST_FILES} files.", "Name the folder that they are in.")
    if not found:
        raise SpecError(f"Input '{name}' ({source}) cannot be read: there is no such file.")
    return [
        msgspec.structs.replace(one, name=inside, facts=msgspec.structs.replace(one.facts, name=inside))
        for file in sorted(found)
        for inside in [f"{name}/{os.path.relpath(file, base)}"]
        for one in [resolve_input(name, file, settings, site_packages, cache, analysis_folder)]
    ]


def resolve_input(
    name: str, source: str, settings: Settings, site_packages: Path | None, cache: DigestCache, analysis_folder: str | None = None
) -> ResolvedInput:
    """Check one input and compute its digest.

    Args:
        source: A path, `package://NAME/PATH` for a file in the runtime, `execution://ID/PATH` for an output that was collected, or
            `https://…#sha256=…` for a file that is fetched.
        site_packages: Where the runtime's packages lie; None if it has none of Python's.
        analysis_folder: Where the analysis' own files lie, which may be inputs wherever that is: they are copied for it anyway.

    Raises:
        SpecError: One sentence: not there, not readable, outside the allowed roots, or no file or folder.
    """
    check_input_name(name, "the request")
    if not source or "\0" in source:
        raise SpecError(f"Input '{name}' has no path.", "Write it as NAME=PATH.")
    if source.startswith(_WEB):
        return _resolve_download(name, source, settings, cache)
    if source.startswith(SNAPSHOT):
        return _resolve_snapshot(name, source, settings, cache)
    expected: str | None = None
    written = source
    if source.startswith(_FILE):
        source, _, expected = source.partition("#sha256=")
        source = unquote(source.removeprefix(_FILE))
        if not source.startswith("/") or not _SHA256.fullmatch(expected):
            raise SpecError(
                f"Input '{name}' ({written}) does not say where it is, or what its content is.",
                "Write it as file:///absolute/path#sha256=64 hexadecimal digits in lower case.",
            )
    in_package = source.startswith(_PACKAGE)
    if in_package and site_packages is None:
        raise SpecError(f"Input '{name}' ({source}) cannot be had: the runtime has no Python packages.", "Name a path.")
    if source.startswith(upstream.EXECUTION):
        file, collected = upstream.collected(source, settings.executions_dir)
        expected = collected.sha256
        roots: tuple[Path, ...] = (settings.executions_dir,)
        where = "the outputs of executions"
    elif in_package and site_packages is not None:
        file, roots, where = site_packages / source.removeprefix(_PACKAGE), (site_packages,), "the runtime's packages"
    else:
        file, roots, where = Path(os.path.expanduser(source)), settings.allowed_input_roots, "the folders that inputs may come from"
    real = os.path.realpath(file)
    path = Path(real)
    allowed = _is_beneath_one(real, roots) or (not in_package and _is_beside(path, analysis_folder))
    if not allowed or (not in_package and _is_forges_own(real, settings)):
        hint = "Name a file or folder of a package." if in_package else ""
        if roots is settings.allowed_input_roots:
            hint = _roots_hint(settings)
        raise SpecError(f"Input '{name}' ({source}) is not in {where}.", hint)
    try:
        # links were resolved above, once, and what is opened is that very path: a link that is put in its way now is refused
        fd = open_without_links(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SpecError(f"Input '{name}' ({source}) cannot be read: it is a link that leads to itself.") from error
        raise SpecError(f"Input '{name}' ({source}) cannot be read: {error.strerror}.") from error
    try:
        facts = os.fstat(fd)
        mode = facts.st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = next((text for test, text in _KINDS.items() if test(mode)), "something else")
            raise SpecError(f"Input '{name}' ({source}) is {kind}; an input is a file or a folder.")
        needed = 0o005 if stat.S_ISDIR(mode) else 0o004
        owner = (facts.st_uid, facts.st_gid) if mode & needed != needed else None
        try:
            digest, size, stamp = _digest(fd, facts, cache)
        except OSError as error:
            raise SpecError(f"Input '{name}' ({source}) cannot be read: {error.strerror}.") from error
        except _ChangedWhileRead:
            raise SpecError(
                f"Input '{name}' ({source}) was changed while it was read.", "Try again when nothing writes to it any more."
            ) from None
    finally:
        os.close(fd)
    if expected is not None and digest != expected:
        of_file = written.startswith(_FILE)
        raise SpecError(
            f"Input '{name}' ({written}) is {'not what was declared' if of_file else 'no longer what was collected'}: its sha256 is {digest}, and {'should be' if of_file else 'was'} {expected}.",
            "Correct the digest, or look what has become of the file." if of_file else "Run that execution's analysis again.",
        )
    described = InputFacts(name=name, source=written, sha256=digest, bytes=size)
    return ResolvedInput(
        name=name, path=str(path), device=facts.st_dev, inode=facts.st_ino, facts=described, owner=owner, stamp=stamp
    )


def _resolve_download(name: str, source: str, settings: Settings, cache: DigestCache) -> ResolvedInput:
    """What was fetched earlier, if it is still what it was; else where it will be."""
    from forge_orchestration.executions import downloads  # only who reads from the web waits for what it loads

    wanted = downloads.parsed(name, source, settings.downloads)
    path = downloads.place(settings.cache_dir, wanted)
    try:
        digest, found = digest_of_file(path, cache)
        if digest == wanted.sha256:
            facts = InputFacts(name=name, source=source, sha256=digest, bytes=found.st_size)
            return ResolvedInput(
                name=name, path=str(path), device=found.st_dev, inode=found.st_ino, facts=facts, stamp=_stamp_of_file(found)
            )
        path.unlink()  # somebody has changed it
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SpecError(f"Input '{name}' ({source}) was fetched to {path}, which cannot be read: {error.strerror}.") from error
    return ResolvedInput(
        name=name, path=str(path), device=0, inode=0, facts=InputFacts(name=name, source=source, sha256=wanted.sha256, bytes=0)
    )


def _resolve_snapshot(name: str, source: str, settings: Settings, cache: DigestCache) -> ResolvedInput:
    from forge_orchestration.executions.snapshots import snapshot

    taken = snapshot(name, source, settings)
    digest, found = digest_of_file(taken.path, cache)
    if digest != taken.sha256:
        raise SpecError(f"Input '{name}' ({source}) is kept in {taken.path}, which somebody has changed.", "Remove that file.")
    facts = InputFacts(name=name, source=taken.source, sha256=digest, bytes=found.st_size, taken_at=taken.taken_at)
    # another execution that keeps it changes one of its times: it is compared by content
    return ResolvedInput(name=name, path=str(taken.path), device=found.st_dev, inode=found.st_ino, facts=facts)


def fetch_input(item: ResolvedInput, settings: Settings, cache: DigestCache, cancel: threading.Event | None) -> ResolvedInput:
    """The same input with a file.

    Raises:
        ForgeError: It cannot be fetched, or `cancel` was set.
    """
    from forge_orchestration.executions import downloads

    wanted = downloads.parsed(item.name, item.facts.source, settings.downloads)
    downloads.fetch(item.name, wanted, settings.cache_dir, settings.downloads, cancel)
    return _resolve_download(item.name, item.facts.source, settings, cache)


def digest_of_file(path: Path, cache: DigestCache) -> tuple[str, os.stat_result]:
    """sha256 of a plain file of ours, and what was said of it when that was computed.

    Raises:
        OSError: It cannot be read, or is no plain file.
        SpecError: It was changed meanwhile.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return _file_digest(fd, facts, cache), facts
    except _ChangedWhileRead:
        raise SpecError(f"{path} was changed while it was read.", "Try again when nothing writes to it any more.") from None
    finally:
        os.close(fd)


def has_changed(item: ResolvedInput, cache: DigestCache) -> bool:
    """Whether anybody has touched the file or folder since its digest was made: it may be the same again, and have been another meanwhile.

    Of outputs that were collected, and of snapshots, the content is compared: a second name of one changes its times.
    """
    try:
        fd = open_without_links(Path(item.path))
    except OSError:
        return True
    try:
        facts = os.fstat(fd)
        if (facts.st_dev, facts.st_ino) != (item.device, item.inode):
            return True
        if item.facts.source.startswith((upstream.EXECUTION, SNAPSHOT)):
            return _digest(fd, facts, cache)[0] != item.facts.sha256
        return _stamp(fd, facts) != item.stamp
    except (OSError, SpecError, _ChangedWhileRead):
        return True
    finally:
        os.close(fd)


class _ChangedWhileRead(Exception):
    """A file is not the one any more of which a part was read."""


def _is_beside(path: Path, analysis_folder: str | None) -> bool:
    if analysis_folder is None:
        return False
    from forge_orchestration.executions.code import is_code  # a bare command need not wait for what it loads

    return is_code(path, Path(os.path.realpath(analysis_folder)))


def _roots_hint(settings: Settings) -> str:
    return f"They are: {', '.join(map(os.path.realpath, settings.allowed_input_roots))} (allowed_input_roots in settings.toml)."


def _is_in_place(path: str, settings: Settings, analysis_folder: str | None) -> bool:
    """Whether a path without links is where inputs may be, or is the analysis' folder or in it."""
    if _is_beneath_one(path, settings.allowed_input_roots) or _is_beside(Path(path), analysis_folder):
        return True
    return analysis_folder is not None and path == os.path.realpath(analysis_folder)


def _is_beneath_one(path: str, roots: Sequence[Path]) -> bool:
    """Whether a path without links is one of these folders, or beneath it; first of those that it looks beneath."""
    return any(_is_beneath(path, os.path.realpath(root)) for root in sorted(roots, key=lambda root: not path.startswith(str(root))))


def _is_beneath(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_forges_own(path: str, settings: Settings) -> bool:
    """Whether `path` is Forge's own or holds it: its store, its runtimes, other executions. Collected outputs are not, nor what was copied to be run."""
    home = os.path.realpath(settings.home)
    if _is_beneath(home, path):
        return True
    if not _is_beneath(path, home):
        return False
    parts = path.removeprefix(home).strip("/").split("/")
    return not (len(parts) >= 4 and parts[0] == "executions" and parts[2] in ("outputs", "analysis"))


def _digest(fd: int, facts: os.stat_result, cache: DigestCache) -> tuple[str, int, str]:
    """sha256 and size of a file, or of a folder's sorted paths and contents, read beneath the descriptor that was checked; and the stamp."""
    before = _stamp(fd, facts)
    if stat.S_ISREG(facts.st_mode):
        return _file_digest(fd, facts, cache), facts.st_size, before
    digest, total = hashlib.sha256(), 0
    for path, name, folder_fd in _entries(fd):
        content, size = _entry_digest(name, folder_fd, cache)
        total += size
        digest.update(msgspec.json.encode([path.hex(), content]))
    if _stamp(fd, facts) != before:
        raise _ChangedWhileRead
    return digest.hexdigest(), total, before


def _entries(fd: int) -> Iterator[tuple[bytes, str, int]]:
    """Path, name and its folder's descriptor of all that is beneath a folder, in a fixed order."""
    top = _reopened(fd, os.O_DIRECTORY)
    try:
        for root, folders, files, folder_fd in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            folders.sort()
            # folders too: an empty one is seen inside, and one that is linked is a link here
            for name in sorted([*folders, *files]):
                yield os.fsencode(os.path.join(root, name)), name, folder_fd
    finally:
        os.close(top)


def _stamp(fd: int, facts: os.stat_result) -> str:
    """What changes whenever somebody writes to a file, or to anything in a folder."""
    if stat.S_ISREG(facts.st_mode):
        return _stamp_of_file(facts)
    digest = hashlib.sha256()
    for path, name, folder_fd in _entries(fd):
        found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        digest.update(msgspec.json.encode([path.hex(), _stamp_of_file(found)]))
    return digest.hexdigest()


def _stamp_of_file(facts: os.stat_result) -> str:
    return f"{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}"


def _entry_digest(name: str, folder_fd: int, cache: DigestCache) -> tuple[str, int]:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        facts = os.fstat(fd)
        if stat.S_ISREG(facts.st_mode):
            return _file_digest(fd, facts, cache), facts.st_size
        if stat.S_ISLNK(facts.st_mode):
            return "link " + os.fsencode(os.readlink(name, dir_fd=folder_fd)).hex(), 0
        if stat.S_ISDIR(facts.st_mode):
            if facts.st_dev != os.fstat(folder_fd).st_dev:
                raise SpecError(
                    f"'{name}' in an input folder is a mount point: what is mounted there would not be seen in the sandbox.",
                    "Name it as an input of its own.",
                )
            return "folder", 0
        # a read-only mount stops neither a connection to a socket nor a write to a FIFO: the host would be reachable
        raise SpecError(
            f"'{name}' in an input folder is neither a file, a folder nor a link.", "Remove it, or name the files one by one."
        )
    finally:
        os.close(fd)


def _file_digest(fd: int, facts: os.stat_result, cache: DigestCache) -> str:
    if (known := cache.digest(facts)) is not None:
        return known
    began = time.time_ns()
    with open(_reopened(fd, os.O_NONBLOCK), "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) != (facts.st_size, facts.st_mtime_ns):
        raise _ChangedWhileRead
    if began - max(facts.st_mtime_ns, facts.st_ctime_ns) > _TICK_NS:
        cache.keep_digest(facts, sha256)
    return sha256


def _reopened(fd: int, flags: int) -> int:
    """A readable descriptor of the file that a path-only descriptor stands for."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | flags)
