"""The analysis' own files: copied into the execution's folder before they are run, so that what ran is what is kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from forge_orchestration.errors import SpecError
from forge_orchestration.executions.inputs import DigestCache, digest_of_file
from forge_orchestration.model.record import CodeFacts
from forge_orchestration.units import format_bytes

_MAX_BYTES = 64 * 2**20
_LEFT_OUT = frozenset({"__pycache__", ".git", ".ipynb_checkpoints"})


DEFINITIONS = frozenset({"analysis.yaml", "defs.yaml"})
"""Files that say how an analysis is run. What of them decides its result is known as such; the rest may be edited freely."""
CALLED_BY = "forge_call.py"
"""Among the files of an analysis that is a Python function: what calls it."""


def check_code(folder: Path, only: Sequence[str] = ()) -> None:
    """Refuse a folder that holds data rather than code.

    Args:
        only: Names of the files and folders in it that are meant; none: all.

    Raises:
        SpecError: It is too large, or cannot be read.
    """
    if not folder.is_dir():
        raise SpecError(f"The analysis' folder {folder} is not there.")
    files = _files(folder, only)
    if unreadable := next((path for path in files if not os.access(path, os.R_OK)), None):
        raise SpecError(f"The analysis' file {unreadable} cannot be read.", "Let this user read it, or move it out of the folder.")
    total = sum(path.stat().st_size for path in files)
    if total > _MAX_BYTES:
        raise SpecError(
            f"The analysis' folder {folder} holds {format_bytes(total)}, and at most {format_bytes(_MAX_BYTES)} are copied.",
            "Keep data elsewhere and declare it as an input.",
        )


def code_digests(folder: Path, cache: DigestCache, only: Sequence[str] = (), *, is_function: bool = False) -> dict[str, str]:
    """What would be copied now: by relative path the digest of each file but `DEFINITIONS`; what can be executed has `:x` behind it.

    Raises:
        SpecError: A file cannot be read, or is written to meanwhile.
    """
    found = {}
    for path, relative in _sources(folder, only, is_function):
        try:
            digest, facts = digest_of_file(path, cache)
        except OSError as error:
            raise SpecError(f"The analysis' file {path} cannot be read: {error.strerror}.") from error
        found[_shown(relative)] = _with_mode(digest, facts.st_mode)
    return _deciding(found)


def snapshot_code(
    folder: Path, target: Path, only: Sequence[str] = (), *, is_function: bool = False
) -> tuple[CodeFacts, dict[str, str]]:
    """Copy the plain files of `folder` to `target`, readable by every user, and say what they are.

    Args:
        only: Names of the files and folders in it that are meant; none: all.
        is_function: Whether what calls a function comes with them.

    Returns:
        The facts, and of each file what `code_digests` gives.
    """
    digest = hashlib.sha256()
    copied: dict[bytes, Path] = {}
    target.mkdir(mode=0o755)
    os.chmod(target, 0o755)  # whatever the umask
    digests = {}
    for path, relative in _sources(folder, only, is_function):
        copy = target / relative
        for parent in reversed(copy.relative_to(target).parents[:-1]):
            (target / parent).mkdir(exist_ok=True)
            os.chmod(target / parent, 0o755)
        shutil.copyfile(path, copy)
        os.chmod(copy, 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
        with open(copy, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(msgspec.json.encode([os.fsencode(relative).hex(), content]))
        digests[_shown(relative)] = _with_mode(content, copy.stat().st_mode)
        if relative.name != CALLED_BY or not is_function:
            copied[os.fsencode(relative)] = copy
    commit, dirty = _git(folder, copied, only)
    return CodeFacts(sha256=digest.hexdigest(), git_commit=commit, git_dirty=dirty), _deciding(digests)


def _sources(folder: Path, only: Sequence[str], is_function: bool) -> list[tuple[Path, Path]]:
    """Each file that is copied, and where it comes to lie."""
    sources = [(path, path.relative_to(folder)) for path in _files(folder, only)]
    if is_function:
        sources.append((Path(__file__).with_name("call_function.py"), Path(CALLED_BY)))
    return sources


def _deciding(digests: dict[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in digests.items() if path not in DEFINITIONS}


def _shown(relative: Path) -> str:
    # no two names are shown alike
    return os.fsencode(relative).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def _with_mode(digest: str, mode: int) -> str:
    return f"{digest}:x" if mode & stat.S_IXUSR else digest


def is_code(path: Path, folder: Path) -> bool:
    """Whether `path`, without links, is one of the files of `folder` that are copied."""
    return path.is_file() and path.is_relative_to(folder) and not _LEFT_OUT & set(path.relative_to(folder).parts)


def _files(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    found = []
    for root, folders, files in os.walk(folder):
        if only and root == str(folder):
            folders[:], files = [name for name in folders if name in only], [name for name in files if name in only]
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        found += [path for name in sorted(files) if (path := Path(root, name)).is_file() and not path.is_symlink()]
    return found


def _git(folder: Path, copied: dict[bytes, Path], only: Sequence[str]) -> tuple[str | None, bool | None]:
    """Commit of the repository that holds `folder`, and whether `copied` differs from it; nothing where git knows nothing.

    The folder is not trusted, and neither is its repository: `git status` would run what its configuration names (monitors,
    filters). Only objects are read, which runs nothing, and compared here.

    Args:
        copied: The files by their path beneath `folder`.
    """
    if not _may_be_in_repository(Path(os.path.realpath(folder))):
        return None, None
    try:
        head = _run_git(folder, "rev-parse", "HEAD").decode().strip()
        committed: dict[bytes, str] = {}
        for line in _run_git(folder, "ls-tree", "-r", "-z", "HEAD").split(b"\0"):
            facts, _, path = line.partition(b"\t")
            parts = os.fsdecode(path).split("/")
            if (
                facts.startswith(b"100") and not _LEFT_OUT & set(parts) and (not only or parts[0] in only)
            ):  # plain files, as they are copied
                committed[path] = facts.split()[2].decode()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None, None
    algorithm = "sha256" if len(head) == 64 else "sha1"
    return head, committed != {path: _blob_name(copy, algorithm) for path, copy in copied.items()}


def _may_be_in_repository(folder: Path) -> bool:
    """Whether git would find anything that looks like one: to start git for its answer takes longer than all else that is copied."""
    return any(os.path.lexists(f"{above}/{name}") for above in (folder, *folder.parents) for name in (".git", "HEAD"))


def _blob_name(path: Path, algorithm: str) -> str:
    data = path.read_bytes()
    return hashlib.new(algorithm, b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _run_git(folder: Path, *arguments: str) -> bytes:
    # no protocol: an object that is missing is not fetched by a command that the repository names
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/"), "GIT_ALLOW_PROTOCOL": "none"}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=20, stdin=subprocess.DEVNULL, env=environment).stdout
