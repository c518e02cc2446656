"""Building a `venv` runtime: uv installs a hashed lock aside; only what passed its self-test is moved into place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.executions.folder import sync_folder, write_atomically
from forge_orchestration.runtimes import catalog, retention, seal
from forge_orchestration.runtimes.catalog import ResolvedRuntime, Runtime, RuntimeDefinition
from forge_orchestration.sandbox import linux
from forge_orchestration.settings import Settings

SelfTest = Callable[[RuntimeDefinition, ResolvedRuntime], None]
_UV_TIMEOUT_S = 3600


def build(
    name: str, settings: Settings, self_test: SelfTest, *, force: bool = False, say: Callable[[str], None] = lambda text: None
) -> Runtime:
    """Build the runtime called `name`, or return the build that is there.

    Two builds of one runtime at once wait for one another and share the result. A build that is killed leaves a folder
    under `.building`, which the next build removes; it never looks finished.

    Args:
        self_test: Runs the definition's self-test inside the sandbox; raises if it fails.
        force: Build anew even if a build is there; the old one is replaced only once the new one has passed.

    Raises:
        RuntimeCatalogError: The definition, the lock, the installation or the self-test is at fault.
    """
    definition = catalog.load_definition(name, settings)
    check_python(definition)
    folder = catalog.build_folder(definition, settings)
    with _locked(catalog.building_lock(name, settings), say):
        _remove_leftovers(settings.runtimes_dir / ".building", name)
        if not force and (there := _whole_build(folder)) is not None:
            return there
        aside = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=settings.runtimes_dir / ".building"))
        try:
            runtime = _build_aside(definition, aside, settings, self_test, say)
            _move_into_place(aside, folder, settings)
        except OSError as error:
            raise RuntimeCatalogError(f"Runtime '{name}' cannot be built in {aside}: {error.strerror}.") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return runtime


def _whole_build(folder: Path) -> Runtime | None:
    """The build in `folder`, if there is one and its files are as sealed."""
    try:
        build = catalog.load_build(folder)
        return build if build is not None and not seal.compare(folder, full=False) else None
    except RuntimeCatalogError:  # it cannot be read: it is built anew
        return None


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


def _build_aside(
    definition: RuntimeDefinition, aside: Path, settings: Settings, self_test: SelfTest, say: Callable[[str], None]
) -> Runtime:
    started = time.monotonic()
    prefix = aside / "prefix"
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    say(f"{definition.name}: making an environment with {base}")
    _uv(settings, "venv", "--quiet", "--relocatable", "--no-project", "--python", str(base), str(prefix))
    if any(line.strip() and not line.lstrip().startswith("#") for line in definition.lock_path.read_text().splitlines()):
        say(f"{definition.name}: installing {definition.lock_path}")
        # copied, not linked: a file of the cache that is edited later must not change a runtime
        _uv(
            settings, "pip", "install", "--quiet", "--python", str(prefix / "bin/python"), "--require-hashes", "--no-deps",
            "--only-binary", ":all:", "--link-mode", "copy", "-r", str(definition.lock_path),
        )  # fmt: skip
        _compile(base, prefix)
    say(f"{definition.name}: sealing")
    entries = seal.make(prefix)
    python = ".".join(map(str, sys.version_info[:3]))
    runtime = Runtime(
        name=definition.name, kind=definition.kind, build=catalog.build_id(definition),
        content_digest=seal.content_digest(entries, python), seal_digest=seal.seal_digest(entries), python=python,
        base_prefix=sys.base_prefix, packages=_packages(prefix), built_at=time.time(),
        build_s=round(time.monotonic() - started, 3), bytes=sum(entry.size for entry in entries), files=len(entries),
    )  # fmt: skip
    seal.save(aside, entries)
    say(f"{definition.name}: testing it inside the sandbox")
    self_test(definition, catalog.resolved(runtime, prefix, time.time(), definition.limits))
    # a self-test cannot write there; should it have, the seal would be wrong from the first day
    if findings := seal.compare(aside, full=False):
        raise RuntimeCatalogError(f"Runtime '{definition.name}' changed during its self-test: {findings[0]}.")
    write_atomically(aside / "runtime.json", msgspec.json.format(msgspec.json.encode(runtime), indent=2))
    return runtime


def _move_into_place(aside: Path, folder: Path, settings: Settings) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(aside, 0o700)
    if folder.exists():
        retention.retire(folder, settings)
    linux.sync_file_system(aside)  # else a loss of power could leave files in place that are empty
    os.rename(aside, folder)
    sync_folder(folder.parent)
    with contextlib.suppress(RuntimeCatalogError):  # what stays is removed by the next build, or by `forge runtimes gc`
        retention.remove_unused(settings)


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
        "/forge/runtime",
        str(prefix / "lib"),
    ]
    # some packages ship files for other versions of Python, which do not compile and are not imported
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_UV_TIMEOUT_S, umask=0o022, check=False)


def _packages(prefix: Path) -> dict[str, str]:
    """Name and version of what is installed, from its metadata; nothing of it is run."""
    from importlib.metadata import distributions

    folders = [str(path) for path in prefix.glob("lib/python*/site-packages")]
    return dict(sorted((found.name, found.version) for found in distributions(path=folders)))


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


def _remove_leftovers(building: Path, name: str) -> None:
    """Remove what a killed build of `name` left; its lock is ours, so none is at work."""
    for folder in unfinished_builds(building, name):
        shutil.rmtree(folder, ignore_errors=True)


def unfinished_builds(building: Path, name: str) -> list[Path]:
    """Folders of builds of runtime `name` alone: a runtime called `name.more` is another one."""
    return [path for path in building.iterdir() if path.is_dir() and path.name.removesuffix(".old").rpartition(".")[0] == name]


@contextlib.contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build of this runtime is under way: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
