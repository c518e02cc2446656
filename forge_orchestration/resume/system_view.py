"""What of the host an analysis can see beside its runtime: programs and libraries in `/usr`, and which of them stand for which.

A sandbox shows all of `/usr`, and an analysis may call or load anything there. So every package counts, by its version; what somebody
has put into `/usr/local` himself, programs by content and the rest by size and time; Debian's alternatives, and the start files of R and
Java, which are seen too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import threading
import time
from pathlib import Path

import msgspec

from forge_orchestration.executions.folder import write_atomically
from forge_orchestration.executions.inputs import DigestCache, digest_of_file
from forge_orchestration.model.compiled import compiled

_STATUS = Path("/var/lib/dpkg/status")
_LOCAL = Path("/usr/local")
_BY_HAND = (_LOCAL / "bin", _LOCAL / "sbin")
_ALTERNATIVES = Path("/etc/alternatives")
_STARTS = (Path("/etc/R"), *sorted(Path("/etc").glob("java-*")))
_LOOKED = "system.json"
_writing = threading.Lock()  # what is written aside is called by the process


@compiled
class SystemView(msgspec.Struct, frozen=True):
    """Version of each package, digest of each program and of each other folder in `/usr/local`, target of each alternative, by name."""

    machine: str
    packages: dict[str, str]
    programs: dict[str, str]
    folders: dict[str, str]
    alternatives: dict[str, str]

    @property
    def digest(self) -> str:
        """sha256, hexadecimal, of all of it."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


@compiled
class _Look(msgspec.Struct, frozen=True):
    """The last whole look: when, what a glance said then, and what was found."""

    at: float
    glance: str
    digest: str


def system_digest(cache_dir: Path, cache: DigestCache, max_age_s: float) -> str:
    """The digest of this host's view now; what it stands for is kept beneath `cache_dir`, for who asks what has changed.

    Args:
        max_age_s: For how long a whole look is relied on, if a glance sees nothing new: no package and no name in `/usr/local`'s
            folders of programs came or went.
    """
    glance = _glance()
    last = _last_look(cache_dir)
    if (
        last is not None
        and last.glance == glance
        and 0 <= time.time() - last.at < max_age_s
        and _path(cache_dir, last.digest).is_file()
    ):
        return last.digest
    view = SystemView(os.uname().machine, _packages(glance), _programs(cache), _folders(cache), _alternatives())
    digest = view.digest
    path = _path(cache_dir, digest)
    with _writing:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.is_file():
            write_atomically(path, msgspec.json.encode(view))
        write_atomically(cache_dir / _LOOKED, msgspec.json.encode(_Look(time.time(), glance, digest)))
    return digest


def kept_view(cache_dir: Path, digest: str) -> SystemView | None:
    """What a digest stood for; None if that is not known any more."""
    try:
        return msgspec.json.decode(_path(cache_dir, digest).read_bytes(), type=SystemView)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):
        return None


def _path(cache_dir: Path, digest: str) -> Path:
    return cache_dir / "systems" / f"{digest}.json"


def _last_look(cache_dir: Path) -> _Look | None:
    try:
        return msgspec.json.decode((cache_dir / _LOOKED).read_bytes(), type=_Look)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):
        return None


def _glance() -> str:
    """What a few looks at folders tell."""
    seen = []
    for path in (_STATUS, _ALTERNATIVES, _LOCAL / "lib", *_BY_HAND, *map(Path, _system_folders())):
        try:
            facts = os.stat(path)
            seen.append(f"{path} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns}")
        except OSError:
            seen.append(f"{path} -")
    return "\n".join(seen)


def _system_folders() -> list[str]:
    """Where there is no dpkg, these stand for their packages."""
    if _STATUS.is_file():
        return []
    return [path for path in ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/share") if os.path.isdir(path)]


@functools.lru_cache(maxsize=4)
def _packages(_glance: str) -> dict[str, str]:
    """Version by `name:architecture` of what dpkg has installed; read once for each state of its list."""
    try:
        text = _STATUS.read_text("utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return {path: str(os.stat(path).st_mtime_ns) for path in _system_folders()}
    found = {}
    for paragraph in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.split("\n")
            if line.startswith(("Package: ", "Version: ", "Architecture: ", "Status: "))
        )
        if fields.get("Status", "").endswith(" installed"):
            found[f"{fields['Package']}:{fields.get('Architecture', '')}"] = fields.get("Version", "")
    return found


def _programs(cache: DigestCache) -> dict[str, str]:
    """Digest of each program in `/usr/local`; a link stands for what it leads to."""
    found = {}
    for folder in _BY_HAND:
        for name in _names(folder):
            path = Path(os.path.realpath(folder / name))
            try:
                if stat.S_ISREG(os.stat(path).st_mode):
                    found[str(folder / name)] = digest_of_file(path, cache)[0]
            except OSError as error:
                found[str(folder / name)] = f"cannot be read: {error.strerror}"
    return found


def _folders(cache: DigestCache) -> dict[str, str]:
    """A digest for each folder two levels beneath `/usr/local`, of paths, sizes and times; and for start files, of their content."""
    found = {}
    for above in (_LOCAL / name for name in _names(_LOCAL) if _LOCAL / name not in _BY_HAND):
        for name in _names(above):
            found[str(above / name)] = _digest_of_tree(above / name)
    for path in (child for folder in _STARTS for child in map(folder.joinpath, _names(folder)) if child.is_file()):
        try:
            found[str(path)] = digest_of_file(Path(os.path.realpath(path)), cache)[0]
        except OSError as error:
            found[str(path)] = f"cannot be read: {error.strerror}"
    return found


def _digest_of_tree(top: Path) -> str:
    digest = hashlib.sha256()
    for root, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            facts = os.lstat(os.path.join(root, name))
            digest.update(f"{root}/{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    if not top.is_dir():
        facts = os.lstat(top)
        digest.update(f"{facts.st_size}\0{facts.st_mtime_ns}".encode())
    return digest.hexdigest()


def _alternatives() -> dict[str, str]:
    found = {}
    for name in _names(_ALTERNATIVES):
        path = _ALTERNATIVES / name
        found[str(path)] = os.readlink(path) if path.is_symlink() else "no link"
    return found


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
