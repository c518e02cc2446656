"""What the packages in an environment say of themselves, held against what is there. Nothing of the environment runs.

The seal tells what has changed since it was made; this tells what was never right, or is wrong in itself: a torn or missing
description, a file that its own package lists and that is not there or is another's, a requirement that nobody meets, a
script whose interpreter is gone, a library for another Python.
"""

from __future__ import annotations

import base64
import csv
import email.parser
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from forge_orchestration.runtimes import seal
from forge_orchestration.runtimes.catalog import Runtime
from forge_orchestration.runtimes.seal import Entry, is_byte_code

_ABI = re.compile(r"\.(cpython-\d+|cp\d+)[-.]")
_INTERPRETERS = ("/bin/", "/usr/bin/")


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """One installed distribution: its folder of metadata beneath the prefix, and the digest by path of the files it lists."""

    name: str
    version: str
    folder: str
    requires: tuple[str, ...] = ()
    files: dict[str, str] = {}


def findings(runtime: Runtime, prefix: Path, entries: Mapping[str, Entry]) -> list[str]:
    """Sentences, each naming a file or a package.

    Args:
        prefix: Where the files are.
        entries: What is there now, by path, with the digests of the files.
    """
    found: list[str] = []
    python = runtime.python
    packages = list(_python_packages(prefix, runtime.site_packages, entries, found)) if python else []
    packages += _conda_packages(prefix, entries, found)
    owners: dict[str, list[str]] = {}
    for package in packages:
        for path in package.files:
            owners.setdefault(path, []).append(f"{package.name} {package.version}")
    for package in packages:
        found += _files(package, entries, owners)
        found += _requirements(package, packages, python)
    found += _scripts(prefix, runtime.mount, entries)
    found += _abi(python, entries) if python else ()
    return found


def damaged_python_packages(prefix: Path, site: str) -> list[str]:
    """Names of packages in `site`, relative to `prefix`, with a file that is gone or not what the package says; reads them all."""
    entries = {entry.path: entry for entry in seal.make(prefix)}
    found = list(_python_packages(prefix, site, entries, []))
    return [package.name for package in found if next(_files(package, entries, {path: [] for path in package.files}), None)]


def installed(prefix: Path, site: str) -> dict[str, str]:
    """Version by name of the Python packages in `site`, relative to `prefix`, from their metadata; nothing of them is run."""
    from importlib.metadata import distributions

    return dict(sorted((one.name, one.version) for one in distributions(path=[str(prefix / site)])))


def _python_packages(prefix: Path, site: str, entries: Mapping[str, Entry], found: list[str]) -> Iterator[Package]:
    for path, entry in entries.items():
        if entry.kind != "d" or not path.endswith((".dist-info", ".egg-info")) or os.path.dirname(path) != site:
            continue
        metadata = prefix / path / ("METADATA" if path.endswith(".dist-info") else "PKG-INFO")
        try:
            fields = email.parser.Parser().parsestr(metadata.read_text("utf-8", "replace"), headersonly=True)
            name, version = str(fields["Name"]), str(fields["Version"])
            if fields["Name"] is None or fields["Version"] is None:
                raise ValueError("it has no name or version")
        except (OSError, ValueError) as error:
            found.append(f"{path}/{metadata.name} cannot be read: {getattr(error, 'strerror', None) or error}")
            continue
        files: dict[str, str] = {}
        record = prefix / path / "RECORD"
        if path.endswith(".dist-info"):
            try:
                files = dict(_recorded(record.read_text("utf-8"), site))
                if not files:
                    raise ValueError("it lists nothing")
            except (OSError, ValueError, csv.Error) as error:
                found.append(f"{path}/RECORD of {name} cannot be read: {getattr(error, 'strerror', None) or error}")
        yield Package(name=name, version=version, folder=path, requires=tuple(fields.get_all("Requires-Dist") or ()), files=files)


def _recorded(text: str, site: str) -> Iterator[tuple[str, str]]:
    for row in csv.reader(text.splitlines()):
        if len(row) != 3 or not row[0]:
            raise ValueError(f"line {row!r:.60} is torn")
        digest = ""
        if row[1]:
            kind, _, encoded = row[1].partition("=")
            if kind == "sha256":
                digest = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
        if not os.path.isabs(row[0]):
            yield os.path.normpath(os.path.join(site, row[0])), digest


def _conda_packages(prefix: Path, entries: Mapping[str, Entry], found: list[str]) -> Iterator[Package]:
    for path in entries:
        if not (path.startswith("conda-meta/") and path.endswith(".json")):
            continue
        try:
            raw: Any = json.loads((prefix / path).read_bytes())
            files = {
                one["_path"]: one.get("sha256_in_prefix") or ("" if one.get("prefix_placeholder") else one.get("sha256")) or ""
                for one in raw["paths_data"]["paths"]
                if one.get("path_type") != "directory"
            }
            package = Package(name=f"conda:{raw['name']}", version=raw["version"], folder=path, files=files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            found.append(f"{path} cannot be read: {error}")
            continue
        yield package


def _files(package: Package, entries: Mapping[str, Entry], owners: Mapping[str, list[str]]) -> Iterator[str]:
    there = [path for path in package.files if path in entries and not path.endswith(".pyc")]  # byte code is compiled anew here
    gone = [path for path in package.files if path not in entries and not is_byte_code(path)]
    if gone:
        what = "is half removed" if there else "has none of its files"
        yield f"{package.name} {package.version} {what}: {gone[0]} is missing" + (f", and {len(gone) - 1} more" if gone[1:] else "")
    for path in there:
        wanted, entry = package.files[path], entries[path]
        if wanted and entry.kind == "f" and entry.sha256 and entry.sha256 != wanted:
            others = [name for name in owners[path] if name != f"{package.name} {package.version}"]
            by = f": {others[0]} has overwritten it" if others else ""
            yield f"{path} is not what {package.name} {package.version} installed{by}"


def _requirements(package: Package, packages: list[Package], python: str) -> Iterator[str]:
    installed = {canonicalize_name(one.name): one.version for one in packages if not one.name.startswith("conda:")}
    environment = {"python_full_version": python, "python_version": ".".join(python.split(".")[:2]), "extra": ""}
    for text in package.requires:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            yield f"{package.folder}/METADATA holds a torn requirement: {text[:80]}"
            continue
        if wanted.marker is not None and not wanted.marker.evaluate(environment):
            continue
        version = installed.get(canonicalize_name(wanted.name))
        if version is None:
            yield f"{package.name} {package.version} needs {wanted.name}, which is not installed"
        elif not wanted.specifier.contains(version, prereleases=True):
            yield f"{package.name} {package.version} needs {wanted.name}{wanted.specifier}, and {version} is installed"


def _scripts(prefix: Path, mount: str, entries: Mapping[str, Entry]) -> Iterator[str]:
    """Scripts whose interpreter is neither the host's nor in the environment, as it is seen where it is mounted."""
    for path, entry in entries.items():
        if entry.kind == "f" and os.path.dirname(path) == "bin" and entry.mode & 0o111:
            with open(prefix / path, "rb") as file:
                first = file.readline(512)
            if not first.startswith(b"#!") or not (words := first[2:].split()):
                continue
            interpreter = os.fsdecode(words[0])
            inside = interpreter.removeprefix(mount + "/")
            if interpreter.startswith(_INTERPRETERS) or (inside != interpreter and inside in entries):
                continue
            yield f"{path} is a script for {interpreter}, which is not there: the environment was moved"
    for path, entry in entries.items():
        if entry.kind == "l" and not _leads_somewhere(prefix, mount, path, entry.target, entries):
            yield f"{path} is a link to {entry.target}, which is not there"


def _leads_somewhere(prefix: Path, mount: str, path: str, target: str, entries: Mapping[str, Entry]) -> bool:
    if target.startswith(mount + "/"):
        return target.removeprefix(mount + "/") in entries
    if os.path.isabs(target):
        return os.path.exists(target)
    inside = os.path.normpath(os.path.join(os.path.dirname(path), target))
    return inside in entries or inside == "." or os.path.lexists(prefix / inside)


def _abi(python: str, entries: Mapping[str, Entry]) -> Iterator[str]:
    version = "".join(python.split(".")[:2])
    for path, entry in entries.items():
        tag = _ABI.search(os.path.basename(path)) if entry.kind == "f" and path.endswith(".so") else None
        if tag is not None and tag[1] not in (f"cpython-{version}", f"cp{version}"):
            yield f"{path} is for another Python ({tag[1]}) than this one (cpython-{version})"
