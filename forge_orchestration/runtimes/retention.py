"""Builds that are no longer asked for: kept while an execution has them mounted, and removed then."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.executions.store import Store
from forge_orchestration.runtimes import catalog
from forge_orchestration.sandbox import view
from forge_orchestration.sandbox.plan import read_plan
from forge_orchestration.settings import Settings

_RETIRED = ".retired"


def retire(folder: Path, settings: Settings, name: str = "") -> Path:
    """Take a build out of its place, whole: who has it mounted sees no difference. Returns where it is now.

    Args:
        name: Of the runtime, if the folder that it lies in does not say.
    """
    retired = settings.runtimes_dir / _RETIRED
    retired.mkdir(mode=0o700, exist_ok=True)
    target = Path(tempfile.mkdtemp(prefix=f"{name or folder.parent.name}.", dir=retired))
    os.rename(folder, target)  # onto an empty folder, which it replaces
    return target


def remove_unused(settings: Settings) -> list[str]:
    """Remove retired builds that no execution has mounted; returns their names.

    Raises:
        RuntimeCatalogError: What an execution has mounted cannot be told; nothing is removed then.
    """
    removed = []
    with contextlib.suppress(FileNotFoundError):
        waiting = sorted((settings.runtimes_dir / _RETIRED).iterdir())
        used = _mounted(settings) if waiting else set()
        for folder in waiting:
            if _identity(folder / "prefix") not in used:
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
    return removed


def retire_unasked(settings: Settings) -> list[str]:
    """Retire every build that no definition asks for: of an earlier lock, another Python, or a runtime that is gone.

    Raises:
        RuntimeCatalogError: A definition cannot be read, so what it asks for is not known.
    """
    asked = {catalog.build_folder(catalog.load_definition(name, settings), settings) for name in catalog.runtime_names(settings)}
    retired = []
    for runtime in sorted(settings.runtimes_dir.iterdir()):
        if not runtime.name.startswith(".") and runtime.is_dir():
            for build in sorted(runtime.iterdir()):
                if build not in asked:
                    try:
                        retire(build, settings)
                    except OSError as error:
                        raise RuntimeCatalogError(f"{build} cannot be moved away: {error.strerror}.") from error
                    retired.append(f"{runtime.name}/{build.name}")
    return retired


def _mounted(settings: Settings) -> set[tuple[int, int]]:
    """Device and inode of what unfinished executions have for a runtime."""
    used = set()
    for execution_id in Store(settings.store_path).unfinished_controllers():
        folder = settings.executions_dir / execution_id
        try:
            plan = read_plan(folder)
        except FileNotFoundError:  # one that has no plan yet has nothing mounted
            continue
        except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
            raise RuntimeCatalogError(f"What {folder} has mounted cannot be told: {error}.", "Put it right: forge gc") from error
        used |= {(bind.device, bind.inode) for bind in plan.binds if bind.target == view.RUNTIME}
    return used


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino
