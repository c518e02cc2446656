"""The catalog: which runtimes are defined, which are built, and what an execution needs to use one.

FORGE_HOME/runtimes/<name>/<build>/     one build; `build` follows from the lock and the interpreter
  prefix/          the environment, mounted at /forge/runtime
  runtime.json     what it is; written before the folder is moved into place
  seal.json        every file of it
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.model.compiled import compiled
from forge_orchestration.runtimes import seal
from forge_orchestration.settings import Settings

SHIPPED = Path(__file__).parent / "definitions"
RuntimeState = Literal["ready", "building", "unhealthy", "quarantined", "missing"]
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@compiled
class RuntimeDefinition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `runtime.toml`.

    Attributes:
        lock: Hashed requirements, relative to `folder`.
        python: Versions of Python that the lock holds for, such as `>=3.11,<3.14`.
        self_test: Command that must exit 0 inside the sandbox before the runtime may be used; relative to `folder`.
        limits: Limits for executions in this runtime that do not name their own.
    """

    name: str
    folder: str
    kind: Literal["venv"]
    lock: str
    description: str = ""
    python: str = ">=3.11,<3.14"
    self_test: tuple[str, ...] = ()
    limits: dict[str, Any] = {}

    @property
    def lock_path(self) -> Path:
        return Path(self.folder, self.lock)


@compiled
class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """One build, as `runtime.json` holds it."""

    name: str
    kind: str
    build: str
    content_digest: str
    seal_digest: str
    python: str
    base_prefix: str
    packages: dict[str, str]
    built_at: float
    build_s: float
    bytes: int
    files: int


class ResolvedRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime that may be used now.

    Attributes:
        prefix: Folder on the host that is mounted at `/forge/runtime`.
        extra_mounts: Folders mounted at their own paths (the interpreter's own prefix, where it is not in `/usr`).
        activation: Environment variables that it sets.
        verified_at: When its files were last compared with its seal, seconds since the epoch.
    """

    runtime: Runtime
    prefix: Path
    extra_mounts: tuple[Path, ...]
    activation: dict[str, str]
    site_packages: Path
    verified_at: float
    limits: dict[str, Any] = {}


def runtime_names(settings: Settings) -> list[str]:
    """Names of all defined runtimes, built or not."""
    return sorted(_definition_folders(settings))


def load_definition(name: str, settings: Settings) -> RuntimeDefinition:
    """The definition called `name`.

    Raises:
        RuntimeCatalogError: There is none, or it cannot be read.
    """
    folders = _definition_folders(settings)
    if name not in folders:
        raise RuntimeCatalogError(f"There is no runtime '{name[:80]}'.", f"The runtimes are: {', '.join(sorted(folders))}.")
    folder = folders[name]
    path = folder / "runtime.toml"
    try:
        raw = _parsed(path.read_text("utf-8"))
        definition = msgspec.convert(raw | {"name": name, "folder": str(folder)}, RuntimeDefinition)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise RuntimeCatalogError(f"The runtime definition {path} cannot be used: {error}.") from error
    if not definition.lock_path.is_file():
        raise RuntimeCatalogError(f"The runtime definition {path} names the lock {definition.lock}, which is not there.")
    return definition


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> dict[str, Any]:
    """Each text is parsed once a process; callers do not change the answer."""
    return tomllib.loads(text)


def build_id(definition: RuntimeDefinition) -> str:
    """Names the build that `definition` asks for on this interpreter: another lock or another Python is another build."""
    digest = hashlib.sha256(definition.lock_path.read_bytes())
    for name in ("runtime.toml", *definition.self_test[1:]):
        if (path := Path(definition.folder, name)).is_file():
            digest.update(path.read_bytes())
    digest.update(f"{sys.version_info[:3]} {sys.base_prefix} layout 2".encode())
    return digest.hexdigest()[:16]


def build_folder(definition: RuntimeDefinition, settings: Settings) -> Path:
    """Where that build is, or will be."""
    return settings.runtimes_dir / definition.name / build_id(definition)


def load_build(folder: Path) -> Runtime | None:
    """The build in `folder`; None if there is none.

    Raises:
        RuntimeCatalogError: What is there cannot be read.
    """
    try:
        return msgspec.json.decode((folder / "runtime.json").read_bytes(), type=Runtime)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise RuntimeCatalogError(f"{folder}/runtime.json cannot be read: {error}.", "Build the runtime again.") from error


def resolve(name: str, settings: Settings) -> ResolvedRuntime:
    """The runtime called `name`, built and unchanged since.

    Raises:
        RuntimeCatalogError: It is unknown, not built, or not what was sealed; the sentence names the first finding.
    """
    definition = load_definition(name, settings)
    folder = build_folder(definition, settings)
    runtime = load_build(folder)
    if runtime is None:
        raise RuntimeCatalogError(f"Runtime '{name}' is not built.", f"Build it: forge runtimes build {name}")
    if why := seal.quarantine(folder):
        raise RuntimeCatalogError(
            f"Runtime '{name}' is quarantined: {why}.", f"Release it: forge runtimes quarantine --release {name}"
        )
    verdict = seal.quick_verdict(folder, settings.verify_max_age_s)
    full = seal.full_verdict(folder)
    if findings := verdict.findings or (full.findings if full else []):
        raise RuntimeCatalogError(
            f"Runtime '{name}' is not what was built: {findings[0]}.", f"Repair it: forge runtimes repair {name}"
        )
    return resolved(runtime, folder / "prefix", verdict.at, definition.limits)


def state(name: str, settings: Settings, *, max_age_s: float = 0.0) -> tuple[RuntimeState, list[str]]:
    """How the runtime called `name` is, by a quick look, and what was found.

    Args:
        max_age_s: Believe an earlier quick look that found nothing, if it is younger.

    Raises:
        RuntimeCatalogError: It is unknown.
    """
    definition = load_definition(name, settings)
    folder = build_folder(definition, settings)
    if load_build(folder) is None:
        return ("building" if _is_building(name, settings) else "missing"), []
    if why := seal.quarantine(folder):
        return "quarantined", [why]
    findings = seal.quick_verdict(folder, max_age_s).findings
    if not findings and (full := seal.full_verdict(folder)) is not None:
        findings = full.findings
    return ("unhealthy" if findings else "ready"), findings


def building_lock(name: str, settings: Settings) -> Path:
    """What a build of the runtime called `name` holds a lock on."""
    return settings.runtimes_dir / ".building" / f"{name}.lock"


def _is_building(name: str, settings: Settings) -> bool:
    try:
        with open(building_lock(name, settings)) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def resolved(runtime: Runtime, prefix: Path, verified_at: float, limits: dict[str, Any]) -> ResolvedRuntime:
    """What an execution needs of a build whose environment lies at `prefix`."""
    base = Path(runtime.base_prefix)
    version = ".".join(runtime.python.split(".")[:2])
    return ResolvedRuntime(
        runtime=runtime,
        prefix=prefix,
        extra_mounts=() if base.is_relative_to("/usr") else (base,),
        activation={"PATH": "/forge/runtime/bin", "VIRTUAL_ENV": "/forge/runtime"},
        site_packages=prefix / "lib" / f"python{version}" / "site-packages",
        verified_at=verified_at,
        limits=limits,
    )


def _definition_folders(settings: Settings) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for parent in (SHIPPED, *settings.runtime_folders):
        try:
            children = sorted(parent.iterdir())
        except OSError as error:
            raise RuntimeCatalogError(f"The runtime folder {parent} cannot be read: {error.strerror}.") from error
        for child in children:
            if (child / "runtime.toml").is_file() and _NAME.fullmatch(child.name):
                if child.name in found:
                    raise RuntimeCatalogError(f"Two runtimes are called '{child.name}': {found[child.name]} and {child}.")
                found[child.name] = child
    return found
