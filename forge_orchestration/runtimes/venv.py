"""The kind `venv`: uv makes an environment and installs a hashed lock in it. Nothing of what it installs is run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.runtimes import packages
from forge_orchestration.runtimes.catalog import RuntimeDefinition
from forge_orchestration.runtimes.installed import Installed
from forge_orchestration.sandbox.view import RUNTIME
from forge_orchestration.settings import Settings

_UV_TIMEOUT_S = 3600


def install(definition: RuntimeDefinition, prefix: Path, settings: Settings, say: Callable[[str], None]) -> Installed:
    """Make the environment at `prefix`.

    Packages are hard links into Forge's cache. What the cache holds is compared with what the packages say of their files; what
    differs is fetched anew.

    Raises:
        RuntimeCatalogError: The lock does not hold for this Python, or uv cannot install it.
    """
    check_python(definition)
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    say(f"{definition.name}: making an environment with {base}")
    _uv(settings, "venv", "--quiet", "--relocatable", "--no-project", "--python", str(base), str(prefix))
    site = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    if not _is_empty(definition.lock_path):
        say(f"{definition.name}: installing {definition.lock_path}")
        _install_packages(definition, prefix, settings)
        if damaged := packages.damaged_python_packages(prefix, site):
            say(f"{definition.name}: fetching anew what is damaged in the cache: {', '.join(damaged)}")
            _uv(settings, "cache", "clean", "--quiet", *damaged)
            _install_packages(definition, prefix, settings, damaged)
        _compile(base, prefix)
    python = ".".join(map(str, sys.version_info[:3]))
    return Installed(
        basis=python, python=python, base_prefix=sys.base_prefix, site_packages=site,
        activation={"PATH": f"{RUNTIME}/bin", "VIRTUAL_ENV": RUNTIME}, packages=packages.installed(prefix, site),
    )  # fmt: skip


def _is_empty(lock: Path) -> bool:
    return all(not line.strip() or line.lstrip().startswith("#") for line in lock.read_text("utf-8").splitlines())


def _install_packages(definition: RuntimeDefinition, prefix: Path, settings: Settings, again: Iterable[str] = ()) -> None:
    _uv(
        settings, "pip", "install", "--quiet", "--python", str(prefix / "bin/python"), "--require-hashes", "--no-deps",
        "--only-binary", ":all:", "--link-mode", "hardlink", "-r", str(definition.lock_path),
        *(word for name in again for word in ("--reinstall-package", name)),
    )  # fmt: skip


def locked(requirements: Path, settings: Settings) -> str:
    """A hashed lock of `requirements` that holds for every Python which Forge supports.

    Raises:
        RuntimeCatalogError: They cannot be satisfied, or no index can be reached.
    """
    return _uv(
        settings, "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url",
        "--python-version", "3.11", str(requirements),
    )  # fmt: skip


def this_python() -> dict[str, str]:
    """The range of a lock that was made for this minor version of Python."""
    return {"python": f"=={sys.version_info[0]}.{sys.version_info[1]}.*"}


def check_python(definition: RuntimeDefinition) -> None:
    """Refuse a lock that does not hold for the Python that runs this.

    Raises:
        RuntimeCatalogError: It does not, or the range cannot be read.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    version = ".".join(map(str, sys.version_info[:3]))
    try:
        fits = SpecifierSet(definition.python).contains(version)
    except InvalidSpecifier as error:
        raise RuntimeCatalogError(f"Runtime '{definition.name}' has an unreadable 'python': {error}.") from error
    if not fits:
        raise RuntimeCatalogError(
            f"The lock of runtime '{definition.name}' holds for Python {definition.python}, and this is {version}.",
            "Install Forge with one of those.",
        )


def _compile(base: Path, prefix: Path) -> None:
    """Byte-compile the packages, which doubles the speed of a start. By the base interpreter: the one in `prefix` would run
    what packages hook into its start, outside of any sandbox.
    """
    command = [
        str(base),
        "-I",
        "-S",
        "-m",
        "compileall",
        "-q",
        "-j",
        "0",
        "-s",
        str(prefix),
        "-p",
        RUNTIME,
        str(prefix / "lib"),
    ]
    # some packages ship files for other versions of Python, which do not compile and are not imported
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_UV_TIMEOUT_S, umask=0o022, check=False)


def _uv(settings: Settings, *arguments: str) -> str:
    """Run uv with a cache of Forge's own; its message is the sentence when it fails."""
    import uv

    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    environment |= {"UV_CACHE_DIR": str(settings.home / "cache" / "uv"), "UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never"}
    try:
        done = subprocess.run(
            [uv.find_uv_bin(), *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=_UV_TIMEOUT_S, umask=0o022,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeCatalogError(f"uv cannot be run: {error}.") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split())
        raise RuntimeCatalogError(f"uv {arguments[0]} failed: {said[-1500:]}")
    return done.stdout
