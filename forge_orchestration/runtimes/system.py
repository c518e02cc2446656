"""The kind `system`: programs of the host's distribution, pinned by the version of their packages, used where they are.

A sandbox sees the host's `/usr` anyway. What such a runtime adds is the promise that these programs and all packages that they
need are the ones that were sealed.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.runtimes.catalog import Runtime, RuntimeDefinition
from forge_orchestration.runtimes.installed import Installed
from forge_orchestration.sandbox.view import system_view

_TIMEOUT_S = 600
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
# a small installation leaves them out, and no program needs them
_DOCUMENTS = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/info/", "/usr/share/locale/", "/usr/share/lintian/")
_FORMAT = "${db:Status-Abbrev}\\t${Package}\\t${Version}\\t${Pre-Depends}, ${Depends}\\t${Provides}\\n"


def install(definition: RuntimeDefinition, say: Callable[[str], None]) -> Installed:
    """Find the packages of the lock and all that they depend on. Nothing is installed: that is for who administers the host.

    Raises:
        RuntimeCatalogError: The lock does not hold for this distribution, or a package is missing, of another version or damaged.
    """
    pinned = _pinned(definition.lock_path)
    there = _dpkg_status()
    for name, version in pinned.items():
        if (found := there.get(name)) is None or found[0] != version:
            state = f"has version {found[0]}" if found is not None else "is not installed"
            raise RuntimeCatalogError(
                f"Runtime '{definition.name}' needs the package {name} {version}, which {state}.",
                f"Install it: apt-get install {name}={version}",
            )
    closure = _closure(pinned, there)
    say(f"{definition.name}: looking at {len(closure)} packages")
    damaged = _verified(closure)
    if damaged:
        raise RuntimeCatalogError(
            f"The packages of '{definition.name}' are not whole: {'; '.join(damaged[:3])}.", _reinstall(damaged)
        )
    return Installed(
        basis=" ".join(f"{name}={version}" for name, version in closure.items()), packages=closure, prefix="/", mount="",
        listed=_files(closure),
    )  # fmt: skip


def lock_of(packages: Iterable[str]) -> str:
    """A lock of the packages as they are installed here.

    Raises:
        RuntimeCatalogError: One of them is not.
    """
    there = _dpkg_status()
    lines = [f"[{_distribution()}]"]
    for name in packages:
        if name not in there:
            raise RuntimeCatalogError(f"The package {name[:80]} is not installed.", f"Install it: apt-get install {name[:80]}")
        lines.append(f'"{name}" = "{there[name][0]}"')
    return "\n".join([*lines, ""])


def findings(runtime: Runtime) -> list[str]:
    """Packages that are gone or of another version than when it was sealed, and files that are not what their package installed."""
    there = _dpkg_status()
    found = []
    for name, version in runtime.packages.items():
        if (now := there.get(name)) is None:
            found.append(f"the package {name} {version} is no longer installed")
        elif now[0] != version:
            found.append(f"the package {name} has version {now[0]} instead of {version}")
    return found + _verified(runtime.packages)


def _distribution() -> str:
    facts = platform.freedesktop_os_release()
    return f"{facts.get('ID', 'unknown')}-{facts.get('VERSION_ID', 'unknown')}"


def _pinned(lock: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(lock.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RuntimeCatalogError(f"The lock {lock} cannot be read: {error}.") from error
    pinned = content.get(_distribution())
    if not isinstance(pinned, dict) or not pinned:
        raise RuntimeCatalogError(
            f"The lock {lock} holds for {', '.join(content) or 'no distribution'}, and this is {_distribution()}.",
            f"Lock what is installed here: forge runtimes add NAME --packages {' '.join(_first_names(content))}",
        )
    for name, version in pinned.items():
        if not _NAME.fullmatch(name) or not isinstance(version, str):
            raise RuntimeCatalogError(f"The lock {lock} is wrong at '{name[:80]}': a package's name and its version are needed.")
    return pinned


def _first_names(content: Mapping[str, object]) -> list[str]:
    return next((list(one) for one in content.values() if isinstance(one, dict)), ["PACKAGE"])


def _dpkg_status() -> dict[str, tuple[str, str, str]]:
    """Version, dependencies and what is provided, by name, of each package that is installed."""
    found = {}
    for line in _run("dpkg-query", "--show", f"--showformat={_FORMAT}").splitlines():
        status, name, version, depends, provides = line.split("\t")
        if status.startswith("ii"):
            found[name] = (version, depends, provides)
    return found


def _closure(names: Iterable[str], there: Mapping[str, tuple[str, str, str]]) -> dict[str, str]:
    """The packages and all that they depend on, as far as it is installed, version by name, sorted."""
    providers: dict[str, list[str]] = {}
    for name, (_, _, provides) in there.items():
        for provided in _names(provides):
            providers.setdefault(provided, []).append(name)
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name not in there:
            continue
        found.add(name)
        for needed in _names(there[name][1]):
            waiting += [needed] if needed in there else providers.get(needed, [])
    return {name: there[name][0] for name in sorted(found)}


def _names(relation: str) -> list[str]:
    """Every name in a field such as `libc6 (>= 2.34), debconf (>= 0.5) | debconf-2.0`."""
    return [match[0] for part in re.split(r"[,|]", relation) if (match := _NAME.match(part.strip()))]


def _files(packages: Iterable[str]) -> list[str]:
    """Paths beneath `/` of what the packages have installed and a sandbox can see."""
    seen = tuple(f"{folder}/" for folder in (*system_view()[0], *system_view()[1]))
    listed = set(_run("dpkg-query", "--listfiles", *packages).splitlines())
    return sorted(path[1:] for path in listed if path.startswith(seen) and os.path.lexists(path))


def _verified(packages: Iterable[str]) -> list[str]:
    """What dpkg finds that its own digests do not say, where a sandbox can see it."""
    seen = tuple(f"{folder}/" for folder in (*system_view()[0], *system_view()[1]))
    found = []
    for line in _run("dpkg", "--verify", *packages, fails=True).splitlines():
        state, _, path = line.partition("/")
        path, kind = f"/{path}", state.split()
        if not path.startswith(seen) or path.startswith(_DOCUMENTS) or "c" in kind[1:]:  # a configuration is there to be edited
            continue
        found.append(f"{path} is missing" if kind[0] == "missing" else f"{path} is not what its package installed")
    return found


def _reinstall(damaged: list[str]) -> str:
    path = damaged[0].split(" is ")[0]
    return f"Which package it is: dpkg --search {path}; then: apt-get install --reinstall PACKAGE"


def _run(*command: str, fails: bool = False) -> str:
    try:
        done = subprocess.run(
            command, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="surrogateescape",
            timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeCatalogError(
            f"{command[0]} cannot be run: {error}.", "Runtimes of kind system need a host with dpkg (Debian, Ubuntu)."
        ) from error
    if done.returncode != 0 and not fails:
        raise RuntimeCatalogError(f"{command[0]} failed: {' '.join(done.stderr.split())[:600]}")
    return done.stdout
