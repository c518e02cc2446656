"""The catalog: which runtimes are defined, which are built, and what an execution needs to use one.

FORGE_HOME/definitions/<name>/          what `forge runtimes add` has written: runtime.toml and its lock
FORGE_HOME/runtimes/<name>/<build>/     one build; `build` follows from the lock and the interpreter
  prefix/          the environment, mounted at /forge/runtime; an adopted one and the host's programs stay where they are
  runtime.json     what it is; written before the folder is moved into place
  seal.json        every file of it, with its digest
  index            the same without digests, as text
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.model.compiled import compiled
from forge_orchestration.runtimes import seal
from forge_orchestration.sandbox.view import RUNTIME
from forge_orchestration.settings import Settings

SHIPPED = Path(__file__).parent / "definitions"
RuntimeKind = Literal["venv", "conda", "system", "image"]
RuntimeState = Literal["ready", "building", "unhealthy", "quarantined", "missing"]
_MADE_OF = {"venv": {"lock"}, "conda": {"lock", "prefix"}, "system": {"lock"}, "image": {"image"}}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@compiled
class RuntimeDefinition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `runtime.toml`.

    Attributes:
        lock: What it is made of, relative to `folder`: hashed requirements or a `pylock.toml` (`venv`), a `conda-lock.yml`, a
            `pixi.lock` or an explicit list (`conda`), packages of the distribution by version (`system`).
        image: Of kind `image`, instead of a lock: an image by its digest, `NAME@sha256:…` or `sha256:…`.
        prefix: Of kind `conda`, instead of a lock: an environment that is there already, and is used in place.
        python: Versions of Python that the lock holds for, such as `>=3.11,<3.14`; for kind `venv`.
        self_test: Command that must exit 0 inside the sandbox before the runtime may be used; relative to `folder`.
        limits: Limits for executions in this runtime that do not name their own.
    """

    name: str
    folder: str
    kind: RuntimeKind
    lock: str = ""
    prefix: str = ""
    image: str = ""
    description: str = ""
    python: str = ">=3.11,<3.14"
    self_test: tuple[str, ...] = ()
    limits: dict[str, Any] = {}

    @property
    def lock_path(self) -> Path:
        return Path(self.folder, self.lock)


@compiled
class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """One build, as `runtime.json` holds it.

    Attributes:
        python: Version of its Python; empty if it has none.
        base_prefix: Where the interpreter of a `venv` is installed; else empty.
        prefix: Where its files are, if not beside `runtime.json`.
        mount: Where they appear in the sandbox; empty if the view of the system shows them anyway.
        site_packages: Where its Python packages lie, relative to the prefix; empty if it has no Python.
        activation: The variables that it sets, computed once, inside the sandbox, when it was built.
    """

    name: str
    kind: str
    build: str
    content_digest: str
    seal_digest: str
    python: str
    base_prefix: str = ""
    prefix: str = ""
    mount: str = RUNTIME
    site_packages: str = ""
    activation: dict[str, str] = {}
    packages: dict[str, str]
    built_at: float
    build_s: float
    bytes: int
    files: int


class ResolvedRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime that may be used now.

    Attributes:
        prefix: Folder on the host that holds it.
        mounts: Folders of the host by where they appear in the sandbox: the prefix, and the interpreter's own where it is not in `/usr`.
        activation: Environment variables that it sets.
        verified_at: When its files were last compared with its seal, seconds since the epoch.
    """

    runtime: Runtime
    prefix: Path
    mounts: dict[str, Path]
    activation: dict[str, str]
    site_packages: Path | None
    verified_at: float
    limits: dict[str, Any] = {}


def is_name(text: str) -> bool:
    """Whether a runtime may be called so."""
    return _NAME.fullmatch(text) is not None


def runtime_names(settings: Settings) -> list[str]:
    """Names of all defined runtimes, built or not."""
    return sorted(_definition_folders(settings))


def load_definition(name: str, settings: Settings) -> RuntimeDefinition:
    """The definition called `name`; of `NAME@BUILD`, the definition of `NAME`.

    Raises:
        RuntimeCatalogError: There is none, or it cannot be read.
    """
    name = name.partition("@")[0]
    folders = _definition_folders(settings)
    if name not in folders:
        raise RuntimeCatalogError(f"There is no runtime '{name[:80]}'.", f"The runtimes are: {', '.join(sorted(folders))}.")
    folder = folders[name]
    try:
        with open(f"{folder}/runtime.toml", encoding="utf-8") as file:
            definition = _defined(name, folder, file.read())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise RuntimeCatalogError(f"The runtime definition {folder}/runtime.toml cannot be used: {error}.") from error
    if definition.lock and not definition.lock_path.is_file():
        raise RuntimeCatalogError(
            f"The runtime definition {folder}/runtime.toml names the lock {definition.lock}, which is not there."
        )
    return definition


@functools.lru_cache(maxsize=64)
def _defined(name: str, folder: str, text: str) -> RuntimeDefinition:
    """What `text` defines; each is read once a process."""
    definition = msgspec.convert(tomllib.loads(text) | {"name": name, "folder": folder}, RuntimeDefinition)
    given = {key for key in ("lock", "prefix", "image") if getattr(definition, key)}
    if len(given) != 1 or not given <= _MADE_OF[definition.kind]:
        raise RuntimeCatalogError(
            f"The runtime definition {folder}/runtime.toml is of kind {definition.kind}, which needs {' or '.join(sorted(_MADE_OF[definition.kind]))}, and nothing else."
        )
    return definition


def build_id(definition: RuntimeDefinition) -> str:
    """Names the build that `definition` asks for on this interpreter: another lock or another Python is another build."""
    digest = hashlib.sha256(definition.lock_path.read_bytes() if definition.lock else b"")
    for name in ("runtime.toml", *definition.self_test[1:]):
        if (path := Path(definition.folder, name)).is_file():
            digest.update(path.read_bytes())
    if definition.kind == "venv":
        digest.update(f"{sys.version_info[:3]} {sys.base_prefix}".encode())
    digest.update(b"layout 3")
    return digest.hexdigest()[:16]


def build_folder(definition: RuntimeDefinition, settings: Settings) -> Path:
    """Where that build is, or will be."""
    return settings.runtimes_dir / definition.name / build_id(definition)


def chosen_folder(name: str, definition: RuntimeDefinition, settings: Settings) -> Path:
    """Where the build is that `name` asks for: the definition's, or in `NAME@BUILD` the one whose id begins so.

    Raises:
        RuntimeCatalogError: There is no such build, or more than one.
    """
    wanted = name.partition("@")[2]
    if not wanted:
        return build_folder(definition, settings)
    there = build_ids(definition.name, settings)
    found = [one for one in there if one.startswith(wanted)]
    if len(found) != 1:
        many = "more than one build" if found else "no build"
        raise RuntimeCatalogError(
            f"Runtime '{definition.name}' has {many} whose id begins with '{wanted[:80]}'.",
            f"Its builds: {', '.join(there) or 'none'}.",
        )
    return settings.runtimes_dir / definition.name / found[0]


def build_ids(name: str, settings: Settings) -> list[str]:
    """Ids of the builds of `name` that are there, of the present lock and of earlier ones."""
    return sorted(path.parent.name for path in (settings.runtimes_dir / name).glob("*/runtime.json"))


def tree(runtime: Runtime, folder: Path) -> seal.Tree:
    """The files of the build in `folder`."""
    return seal.Tree(prefix=Path(runtime.prefix or folder / "prefix"), whole=runtime.kind not in ("system", "image"))


def load_build(folder: Path) -> Runtime | None:
    """The build in `folder`; None if there is none.

    Raises:
        RuntimeCatalogError: What is there cannot be read.
    """
    try:
        return msgspec.json.decode((folder / "runtime.json").read_bytes(), type=Runtime)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise RuntimeCatalogError(f"{folder}/runtime.json cannot be read: {error}.", "Build the runtime again.") from error


def resolve(name: str, settings: Settings) -> ResolvedRuntime:
    """The runtime called `name`, built and unchanged since.

    Raises:
        RuntimeCatalogError: It is unknown, not built, or not what was sealed; the sentence names the first finding.
    """
    definition = load_definition(name, settings)
    folder = chosen_folder(name, definition, settings)
    runtime = load_build(folder)
    if runtime is None:
        raise RuntimeCatalogError(f"Runtime '{name}' is not built.", f"Build it: forge runtimes build {name}")
    if why := seal.quarantine(folder):
        raise RuntimeCatalogError(
            f"Runtime '{name}' is quarantined: {why}.", f"Release it: forge runtimes quarantine --release {name}"
        )
    verdict = _quick_verdict(runtime, folder, settings, settings.verify_max_age_s)
    full = seal.full_verdict(folder)
    if findings := verdict.findings or (full.findings if full else []):
        raise RuntimeCatalogError(
            f"Runtime '{name}' is not what was built: {findings[0]}.", f"Repair it: forge runtimes repair {name}"
        )
    return resolved(runtime, folder, verdict.at, definition.limits)


def state(name: str, settings: Settings, *, max_age_s: float = 0.0) -> tuple[RuntimeState, list[str]]:
    """How the runtime called `name` is, by a quick look, and what was found.

    Args:
        max_age_s: Believe an earlier quick look that found nothing, if it is younger.

    Raises:
        RuntimeCatalogError: It is unknown.
    """
    definition = load_definition(name, settings)
    folder = chosen_folder(name, definition, settings)
    runtime = load_build(folder)
    if runtime is None:
        return ("building" if _is_building(name, settings) else "missing"), []
    if why := seal.quarantine(folder):
        return "quarantined", [why]
    findings = _quick_verdict(runtime, folder, settings, max_age_s).findings
    if not findings and (full := seal.full_verdict(folder)) is not None:
        findings = full.findings
    return ("unhealthy" if findings else "ready"), findings


def _quick_verdict(runtime: Runtime, folder: Path, settings: Settings, max_age_s: float) -> seal.Verdict:
    if runtime.kind == "image":
        from forge_orchestration.runtimes import image

        return seal.quick_verdict(folder, lambda: image.findings(runtime, settings), max_age_s)
    return seal.quick_verdict(folder, lambda: seal.compare(folder, tree(runtime, folder), full=False), max_age_s)


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


def resolved(runtime: Runtime, folder: Path, verified_at: float, limits: dict[str, Any]) -> ResolvedRuntime:
    """What an execution needs of the build in `folder`."""
    prefix = tree(runtime, folder).prefix
    mounts = {runtime.mount: prefix} if runtime.mount else {}
    if runtime.base_prefix and not Path(runtime.base_prefix).is_relative_to("/usr"):
        mounts[runtime.base_prefix] = Path(runtime.base_prefix)
    return ResolvedRuntime(
        runtime=runtime,
        prefix=prefix,
        mounts=mounts,
        activation=runtime.activation,
        site_packages=prefix / runtime.site_packages if runtime.site_packages else None,
        verified_at=verified_at,
        limits=limits,
    )


def _definition_folders(settings: Settings) -> dict[str, str]:
    found: dict[str, str] = {}
    alike: dict[str, str] = {}
    own = settings.definitions_dir
    for parent in (SHIPPED, *([own] if own.is_dir() else []), *settings.runtime_folders):
        try:
            names = sorted(os.listdir(parent))
        except OSError as error:
            raise RuntimeCatalogError(f"The runtime folder {parent} cannot be read: {error.strerror}.") from error
        for name in names:
            folder = f"{parent}/{name}"
            if _NAME.fullmatch(name) and os.path.isfile(f"{folder}/runtime.toml"):
                # Dagster knows no other punctuation than '_'
                other = alike.setdefault(name.replace(".", "_").replace("-", "_"), name)
                if name in found:
                    raise RuntimeCatalogError(f"Two runtimes are called '{name}': {found[name]} and {folder}.")
                if other != name:
                    raise RuntimeCatalogError(
                        f"The runtimes '{other}' and '{name}' differ in '.', '-' and '_' alone: {found[other]} and {folder}.",
                        "Rename one.",
                    )
                found[name] = folder
    return found
