"""Defining a runtime from what a scientist has: a lock is kept, what is not locked is locked once, an environment is adopted."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.runtimes import catalog, system
from forge_orchestration.runtimes.catalog import RuntimeDefinition
from forge_orchestration.runtimes.image import check_reference
from forge_orchestration.sandbox import linux
from forge_orchestration.settings import Settings

_MOST_BYTES = 64 << 20


def define(
    name: str,
    settings: Settings,
    *,
    source: Path | None = None,
    packages: Sequence[str] = (),
    image: str = "",
    modules: Sequence[str] = (),
    description: str = "",
    replace: bool = False,
) -> RuntimeDefinition:
    """Write the definition of a runtime to FORGE_HOME; nothing is built yet.

    Args:
        source: A lock (`requirements.txt` with hashes, `pylock.toml`, `conda-lock.yml`, `pixi.lock`, an explicit list), what can be
            locked (`requirements.txt` without hashes, `environment.yml`), or the folder of a conda environment.
        packages: Or packages of the distribution, as they are installed here.
        image: Or an image of a container registry, or of the engine, by its digest.
        modules: Python modules that the self-test imports.
        replace: Whether a definition of this name that was made so before may be replaced.

    Raises:
        RuntimeCatalogError: The name is taken or cannot be one, or the source cannot be used or locked.
    """
    target = settings.definitions_dir / name
    if not catalog.is_name(name):
        raise RuntimeCatalogError(
            f"'{name[:80]}' cannot be a runtime's name.", "Use small letters, digits, '.', '_' and '-', a letter or digit first."
        )
    if name in catalog.runtime_names(settings) and not (replace and target.is_dir()):
        where = catalog.load_definition(name, settings).folder
        raise RuntimeCatalogError(
            f"There is a runtime '{name}' already, in {where}.", "Choose another name, or --replace it if it was added so."
        )
    alike = [one for one in catalog.runtime_names(settings) if one != name and _plain(one) == _plain(name)]
    if alike:
        raise RuntimeCatalogError(
            f"'{name}' differs from the runtime '{alike[0]}' in '.', '-' and '_' alone.", "Choose another name."
        )
    settings.definitions_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".", dir=settings.definitions_dir))
    try:
        keys = {"description": description} if description else {}
        if image:
            check_reference(image, "the request")
            keys |= {"kind": "image", "image": image}
        else:
            keys |= _from_packages(packages, aside) if source is None else _from_source(source, aside, settings)
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
        if modules:
            lines.append("self_test = " + json.dumps(["python", "-c", f"import {', '.join(modules)}"]))
        (aside / "runtime.toml").write_text("\n".join([*lines, ""]), "utf-8")
        if target.is_dir():
            linux.exchange(aside, target)  # the old one is removed below
        else:
            os.rename(aside, target)
    except OSError as error:
        raise RuntimeCatalogError(f"The definition {target} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return catalog.load_definition(name, settings)


def _plain(name: str) -> str:
    return name.replace(".", "_").replace("-", "_")


def _from_packages(packages: Sequence[str], aside: Path) -> dict[str, str]:
    (aside / "packages.toml").write_text(system.lock_of(packages), "utf-8")
    return {"kind": "system", "lock": "packages.toml"}


def _from_source(source: Path, aside: Path, settings: Settings) -> dict[str, str]:
    if source.is_dir():
        return {"kind": "conda", "prefix": os.path.realpath(source)}
    text = _read(source)
    if source.name == "pixi.lock" or source.suffix in (".yml", ".yaml"):
        return _conda(source, text, aside)
    if "@EXPLICIT" in text.splitlines():
        (aside / "explicit.txt").write_text(text, "utf-8")
        return {"kind": "conda", "lock": "explicit.txt"}
    from forge_orchestration.runtimes import venv

    if source.suffix == ".toml":
        (aside / "pylock.toml").write_text(text, "utf-8")
        return {"kind": "venv", "lock": "pylock.toml"} | venv.this_python()
    if "--hash=" not in text:
        (aside / "requirements.in").write_text(text, "utf-8")
        text = venv.locked(aside / "requirements.in", settings)
    (aside / "requirements.txt").write_text(text, "utf-8")
    return {"kind": "venv", "lock": "requirements.txt"}


def _conda(source: Path, text: str, aside: Path) -> dict[str, str]:
    from forge_orchestration.runtimes import conda_locks

    if any(line.startswith("dependencies:") for line in text.splitlines()):
        (aside / "environment.yml").write_text(text, "utf-8")
        (aside / "explicit.txt").write_text(conda_locks.solve_environment(source), "utf-8")
        return {"kind": "conda", "lock": "explicit.txt"}
    (aside / source.name).write_text(text, "utf-8")
    conda_locks.locked_packages(aside / source.name)
    return {"kind": "conda", "lock": source.name}


def _read(source: Path) -> str:
    try:
        if source.stat().st_size > _MOST_BYTES:
            raise RuntimeCatalogError(f"{source} is too large to be a lock.")
        return source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeCatalogError(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
