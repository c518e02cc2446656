"""What of the host an analysis can see beside its runtime: the programs and libraries in `/usr`, as the distribution installed them.

A sandbox shows all of `/usr`, and an analysis may call any program there. So every package counts, by its version, and every
program that somebody put into `/usr/local` by hand, by its content.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from pathlib import Path

import msgspec

from forge_orchestration.executions.folder import write_atomically
from forge_orchestration.executions.inputs import DigestCache, digest_of_file
from forge_orchestration.model.compiled import compiled

_STATUS = Path("/var/lib/dpkg/status")
_BY_HAND = (Path("/usr/local/bin"), Path("/usr/local/sbin"))


@compiled
class SystemView(msgspec.Struct, frozen=True):
    """Version of each package, digest of each program that belongs to none, by name."""

    machine: str
    packages: dict[str, str]
    programs: dict[str, str]

    @property
    def digest(self) -> str:
        """sha256, hexadecimal, of all of it."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def system_digest(cache_dir: Path, cache: DigestCache) -> str:
    """The digest of this host's view now; what it stands for is kept beneath `cache_dir`, for who asks what has changed."""
    programs = _programs(cache)
    version = tuple((path, facts.st_mtime_ns, facts.st_size, facts.st_ino) for path, facts in _stats())
    return _digest_of(cache_dir, version, tuple(sorted(programs.items())))


@functools.lru_cache(maxsize=8)
def _digest_of(cache_dir: Path, _version: object, programs: tuple[tuple[str, str], ...]) -> str:
    """Once a process for each state of the host."""
    view = SystemView(os.uname().machine, _packages(), dict(programs))
    path = _path(cache_dir, view.digest)
    if not path.is_file():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.encode(view))
    return view.digest


def kept_view(cache_dir: Path, digest: str) -> SystemView | None:
    """What a digest stood for; None if that is not known any more."""
    try:
        return msgspec.json.decode(_path(cache_dir, digest).read_bytes(), type=SystemView)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):
        return None


def _path(cache_dir: Path, digest: str) -> Path:
    return cache_dir / "systems" / f"{digest}.json"


def _stats() -> list[tuple[str, os.stat_result]]:
    """What tells that packages were installed or removed: dpkg's list; where there is none, the folders themselves."""
    if _STATUS.is_file():
        return [(str(_STATUS), os.stat(_STATUS))]
    return [(path, os.stat(path)) for path in _folders()]


def _folders() -> list[str]:
    return [path for path in ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/share") if os.path.isdir(path)]


def _packages() -> dict[str, str]:
    """Version by `name:architecture` of what dpkg has installed.

    On another distribution the system's folders stand for their packages, each with when something was last put into it.
    """
    try:
        text = _STATUS.read_text("utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return {path: str(os.stat(path).st_mtime_ns) for path in _folders()}
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
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            path = Path(os.path.realpath(folder / name))
            try:
                if stat.S_ISREG(os.stat(path).st_mode):
                    found[str(folder / name)] = digest_of_file(path, cache)[0]
            except OSError as error:
                found[str(folder / name)] = f"cannot be read: {error.strerror}"
    return found
