"""The kind `conda`: py-rattler installs locked packages, or an environment that is there already is adopted in place.

What is installed is told that it lies at `/forge/runtime`, so two builds of one lock are alike wherever they are made. Neither
link scripts nor anything else of a package is run outside of a sandbox.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.runtimes import packages
from forge_orchestration.runtimes.catalog import RuntimeDefinition
from forge_orchestration.runtimes.conda_locks import check_digest_of_file, locked_packages, one_line
from forge_orchestration.runtimes.installed import Installed
from forge_orchestration.sandbox.view import RUNTIME
from forge_orchestration.settings import Settings

if TYPE_CHECKING:
    from rattler import RepoDataRecord

# what a sandbox has of its own there, or the system
_NOT_FOR_PREFIXES = ("/tmp", "/proc", "/dev", "/sys", "/run", "/forge", "/etc", "/usr/bin", "/usr/lib")


def install(definition: RuntimeDefinition, prefix: Path, settings: Settings, say: Callable[[str], None]) -> Installed:
    """Install the lock at `prefix`. What the cache holds is compared, file by file, with what the package says before it is used.

    Raises:
        RuntimeCatalogError: The lock cannot be read or is for another platform; a package cannot be had or has another digest.
    """
    records = locked_packages(definition.lock_path)
    for record in records:
        check_digest_of_file(record)
    say(f"{definition.name}: installing {len(records)} packages")
    try:
        asyncio.run(_install(records, prefix, settings.home / "cache" / "conda"))
    except Exception as error:  # rattler has no common class of its own
        raise RuntimeCatalogError(f"The packages of '{definition.name}' cannot be installed: {one_line(error)}.") from error
    return _installed(definition, prefix, RUNTIME, adopted=False)


async def _install(records: list[RepoDataRecord], prefix: Path, cache: Path) -> None:
    from rattler import PackageCache, ValidationMode, install

    before = os.umask(0o022)
    try:
        await install(
            records, prefix, installed_packages=[], execute_link_scripts=False, show_progress=False, alternative_target_prefix=RUNTIME,
            package_cache=PackageCache.new_layered([cache], validation_mode=ValidationMode.full()),
        )  # fmt: skip
    finally:
        os.umask(before)


def adopt(definition: RuntimeDefinition, say: Callable[[str], None]) -> Installed:
    """Take the environment at `definition.prefix`, made by conda, mamba, micromamba or pixi, as it is. Nothing is written there.

    Raises:
        RuntimeCatalogError: It is none, or lies where a sandbox cannot have it.
    """
    prefix = Path(definition.prefix)
    if not (prefix / "conda-meta").is_dir():
        raise RuntimeCatalogError(
            f"{prefix} is no conda environment: it has no folder conda-meta.", "Name the folder with bin and conda-meta."
        )
    if Path(os.path.realpath(prefix)) != prefix or any(prefix.is_relative_to(one) for one in _NOT_FOR_PREFIXES):
        raise RuntimeCatalogError(
            f"The environment {prefix} cannot be used where it is: a sandbox would not have it there.",
            f"Its path must be absolute, without links, and not beneath {', '.join(_NOT_FOR_PREFIXES)}.",
        )
    say(f"{definition.name}: adopting {prefix}")
    return _installed(definition, prefix, str(prefix), adopted=True)


def _installed(definition: RuntimeDefinition, prefix: Path, mount: str, *, adopted: bool) -> Installed:
    metadata = _metadata(prefix)
    python = next((one["version"] for one in metadata if one["name"] == "python"), "")
    site = ""
    found = {one["name"]: str(one["version"]) for one in metadata}
    if python:
        shown = next((one.get("python_site_packages_path") for one in metadata if one["name"] == "python"), None)
        site = shown or f"lib/python{'.'.join(python.split('.')[:2])}/site-packages"
        # what pip has put there belongs to it
        found = packages.installed(prefix, site) | found
    return Installed(
        basis=f"conda {python}", python=python, prefix=str(prefix) if adopted else "", mount=mount, site_packages=site,
        activation={"PATH": f"{mount}/bin", "CONDA_PREFIX": mount, "CONDA_DEFAULT_ENV": definition.name},
        activation_script=_activation_script(prefix, mount), packages=dict(sorted(found.items())),
        original=dict(_original(prefix, mount, metadata)),
    )  # fmt: skip


def _metadata(prefix: Path) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        try:
            one = json.loads(path.read_bytes())
            found.append({**one, "name": str(one["name"]), "version": str(one["version"]), "paths_data": one["paths_data"]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RuntimeCatalogError(
                f"{path} is torn: {error}.", "Put it right with the tool that made the environment."
            ) from error
    if not found:
        raise RuntimeCatalogError(f"The environment {prefix} holds no package.")
    return found


def _original(prefix: Path, mount: str, metadata: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    """sha256 by path, as the package has it, of files that hold the prefix; of scripts made at installation, without it."""
    import hashlib

    for package in metadata:
        for one in package["paths_data"].get("paths", ()):
            if one.get("prefix_placeholder") and one.get("sha256"):
                yield one["_path"], one["sha256"]
            elif one.get("path_type") == "unix_python_entry_point":
                text = (prefix / one["_path"]).read_bytes().replace(os.fsencode(mount), os.fsencode(RUNTIME))
                yield one["_path"], hashlib.sha256(text).hexdigest()


def _activation_script(prefix: Path, mount: str) -> str:
    """What activates the environment at `mount`; empty if it brings neither variables nor scripts."""
    places = (prefix / "etc/conda/activate.d", prefix / "etc/conda/env_vars.d", prefix / "conda-meta/state")
    if not any(place.is_file() or (place.is_dir() and any(place.iterdir())) for place in places):
        return ""
    from rattler.shell import ActivationVariables, Shell, activate

    try:
        script = activate(prefix, ActivationVariables(None, ["/usr/local/bin", "/usr/bin", "/bin"]), Shell.bash).script
    except Exception as error:  # rattler has no common class of its own
        raise RuntimeCatalogError(f"How {prefix} is activated cannot be told: {one_line(error)}.") from error
    return script.replace(str(prefix), mount)
