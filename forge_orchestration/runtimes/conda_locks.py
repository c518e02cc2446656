"""Locks of conda packages: reading those that are common, and solving an `environment.yml` into one."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import url2pathname

from forge_orchestration.errors import RuntimeCatalogError

if TYPE_CHECKING:
    from rattler import RepoDataRecord

_EXPLICIT = "@EXPLICIT"
_URL = re.compile(
    r"(?P<url>(?:https?|file)://\S+?/(?P<subdir>[a-z0-9_-]+)/(?P<file>[^/\s#]+\.(?:conda|tar\.bz2)))(?:#(?:sha256:)?(?P<digest>[0-9a-f]{32}|[0-9a-f]{64}))?$"
)


def locked_packages(lock: Path) -> list[RepoDataRecord]:
    """The packages of a `conda-lock.yml`, a `pixi.lock` or an explicit list, for this platform, each with its digest.

    Raises:
        RuntimeCatalogError: It is none of these, holds nothing for this platform, or a package without a digest.
    """
    try:
        text = lock.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeCatalogError(f"The lock {lock} cannot be read: {error}.") from error
    records = _explicit(lock, text) if _EXPLICIT in text.splitlines() else _from_lock_file(lock)
    if without := next((one.file_name for one in records if not one.sha256 and not one.md5), None):
        raise RuntimeCatalogError(f"The lock {lock} has no digest for {without}.", "Lock with sha256 digests.")
    return records


def _from_lock_file(lock: Path) -> list[RepoDataRecord]:
    from rattler import LockFile
    from rattler.platform import Subdir

    here = str(Subdir.current())
    try:
        environment = LockFile.from_path(lock).default_environment()
    except Exception as error:  # rattler has no common class of its own
        raise RuntimeCatalogError(
            f"The lock {lock} cannot be used: {one_line(error)}.",
            "It must be a conda-lock.yml, a pixi.lock or an explicit list. Of an environment.yml: forge runtimes add NAME environment.yml",
        ) from error
    platforms = {str(platform.subdir): platform for platform in environment.platforms()} if environment is not None else {}
    if environment is None or here not in platforms:
        raise RuntimeCatalogError(f"The lock {lock} holds for {', '.join(sorted(platforms)) or 'no platform'}, and this is {here}.")
    if environment.pypi_packages_for_platform(platforms[here]):
        raise RuntimeCatalogError(
            f"The lock {lock} names packages of pip, which it cannot install.", "Lock them as conda packages."
        )
    return environment.conda_repodata_records_for_platform(platforms[here]) or []


def _explicit(lock: Path, text: str) -> list[RepoDataRecord]:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "@"))]
    return asyncio.run(_read_packages(lock, lines))


async def _read_packages(lock: Path, lines: list[str]) -> list[RepoDataRecord]:
    return [await _record(lock, line) for line in lines]


async def _record(lock: Path, line: str) -> RepoDataRecord:
    """What a package says of itself, with the digest of the list."""
    from rattler import Client, IndexJson, PackageRecord, RepoDataRecord
    from rattler.platform import Subdir

    match = _URL.match(line)
    if match is None:
        raise RuntimeCatalogError(
            f"The lock {lock} has a line that is no package: {line[:120]}.", "It must be URL#sha256 or URL#md5."
        )
    if match["subdir"] not in ("noarch", str(Subdir.current())):
        raise RuntimeCatalogError(f"The lock {lock} holds for {match['subdir']}, and this is {Subdir.current()}.")
    url, digest = match["url"], bytes.fromhex(match["digest"] or "")
    try:
        if url.startswith("file://"):
            index: IndexJson | None = IndexJson.from_package_archive(Path(url2pathname(url.removeprefix("file://"))))
        else:
            index = await IndexJson.from_remote_url(Client(), url)
    except Exception as error:  # rattler has no common class of its own
        raise RuntimeCatalogError(f"The package {url} cannot be had: {one_line(error)}.") from error
    if index is None:
        raise RuntimeCatalogError(f"The package {url} cannot be had: it has no index.")
    package = PackageRecord(
        index.name, str(index.version), index.build, index.build_number, match["subdir"], noarch=index.noarch, depends=index.depends,
        constrains=index.constrains, python_site_packages_path=index.python_site_packages_path,
        sha256=digest if len(digest) == 32 else None, md5=digest if len(digest) == 16 else None,
    )  # fmt: skip
    return RepoDataRecord(package, match["file"], url, url.rsplit("/", 2)[0])


def check_digest_of_file(record: RepoDataRecord) -> None:
    """Hold a package that lies in a folder against its digest: rattler does that for what it downloads only.

    Raises:
        RuntimeCatalogError: It is not there, or is another one.
    """
    if not record.url.startswith("file://"):
        return
    path, expected = url2pathname(record.url.removeprefix("file://")), record.sha256 or record.md5
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256" if record.sha256 else "md5").digest()
    except OSError as error:
        raise RuntimeCatalogError(f"The package {path} cannot be read: {error.strerror}.") from error
    if found != expected:
        raise RuntimeCatalogError(f"The package {path} is not the one that was locked: its digest is another one.", "Lock anew.")


def solve_environment(source: Path) -> str:
    """Solve an `environment.yml` for this host; returns an explicit list with digests.

    Raises:
        RuntimeCatalogError: It cannot be read, a channel cannot be reached, or no set of packages satisfies it.
    """
    import yaml

    try:
        content: Any = yaml.safe_load(source.read_text("utf-8"))
        channels = content.get("channels") or []
        specs = content.get("dependencies") or []
        if not channels or not specs or not all(isinstance(one, str) for one in (*channels, *specs)):
            raise ValueError("it needs channels and dependencies, each a list of texts; packages of pip cannot be locked here")
    except (OSError, UnicodeDecodeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise RuntimeCatalogError(f"{source} cannot be used: {' '.join(str(error).split())}.") from error
    records = asyncio.run(_solve(channels, specs, source))
    lines = [f"{one.url}#sha256:{one.sha256.hex()}" for one in sorted(records, key=lambda one: one.file_name) if one.sha256]
    if len(lines) != len(records):
        raise RuntimeCatalogError(f"A channel of {source} gives no sha256 digest for a package.", "Index the channel anew.")
    head = f"# locked from {source.name}: {' '.join(channels)}; {' '.join(specs)}"
    return "\n".join([head, _EXPLICIT, *lines, ""])


async def _solve(channels: list[str], specs: list[str], source: Path) -> list[RepoDataRecord]:
    from rattler import VirtualPackage, solve
    from rattler.platform import Subdir

    try:
        return await solve(channels, specs, platforms=[Subdir.current(), "noarch"], virtual_packages=VirtualPackage.detect())
    except Exception as error:  # rattler has no common class of its own
        raise RuntimeCatalogError(f"{source} cannot be solved: {one_line(error)}.", "Are the channels reachable?") from error


def one_line(error: Exception) -> str:
    """What an error of rattler's says, in one line."""
    return " ".join(str(error).split())[:600].rstrip(".") or type(error).__name__
