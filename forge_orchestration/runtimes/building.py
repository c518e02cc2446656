"""Building a runtime of any kind: made aside, held against what its packages say, sealed and tested; only then moved into place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.executions.folder import sync_folder, write_atomically
from forge_orchestration.runtimes import catalog, packages, retention, seal, system
from forge_orchestration.runtimes.catalog import ResolvedRuntime, Runtime, RuntimeDefinition
from forge_orchestration.runtimes.installed import Installed
from forge_orchestration.sandbox import linux
from forge_orchestration.settings import Settings

Say = Callable[[str], None]


class Inside(Protocol):
    """What runs something of a runtime, and so runs it inside a sandbox."""

    def activation(self, runtime: ResolvedRuntime, script: str) -> dict[str, str]:
        """The variables that a shell has after `script` and did not have before."""

    def test(self, definition: RuntimeDefinition, runtime: ResolvedRuntime) -> set[str]:
        """Run the self-test; returns the names of libraries that the loader does not find.

        Raises:
            RuntimeCatalogError: The self-test fails.
        """


def build(name: str, settings: Settings, inside: Inside, *, force: bool = False, say: Say = lambda text: None) -> Runtime:
    """Build the runtime called `name`, or return the build that is there.

    Two builds of one runtime at once wait for one another and share the result. A build that is killed leaves a folder
    under `.building`, which the next build removes; it never looks finished.

    Args:
        force: Build anew even if a build is there; the old one is replaced only once the new one has passed.

    Raises:
        RuntimeCatalogError: The definition, the lock, the installation or the self-test is at fault.
    """
    definition = catalog.load_definition(name, settings)
    folder = catalog.build_folder(definition, settings)
    with _locked(catalog.building_lock(definition.name, settings), say):
        remove_leftovers(definition.name, settings)
        if not force and (there := _whole_build(folder)) is not None:
            return there
        aside = Path(tempfile.mkdtemp(prefix=f"{definition.name}.", dir=settings.runtimes_dir / ".building"))
        try:
            runtime = _build_aside(definition, aside, settings, inside, say)
            _move_into_place(aside, folder, settings)
        except OSError as error:
            raise RuntimeCatalogError(f"Runtime '{name}' cannot be built in {aside}: {error.strerror}.") from error
        finally:
            _discard(aside, definition.name, settings)
        return runtime


def package_findings(runtime: Runtime, prefix: Path, entries: Mapping[str, seal.Entry], settings: Settings) -> list[str]:
    """What the packages of a runtime say of their files, held against what is there: sentences, empty if all agree."""
    if runtime.kind == "system":
        return system.findings(runtime)
    if runtime.kind == "image":
        from forge_orchestration.runtimes import image

        return image.findings(runtime, settings)
    return packages.findings(runtime, prefix, entries)


def _whole_build(folder: Path) -> Runtime | None:
    """The build in `folder`, if there is one and its files are as sealed."""
    try:
        build = catalog.load_build(folder)
        return build if build is not None and not seal.compare(folder, catalog.tree(build, folder), full=False) else None
    except RuntimeCatalogError:  # it cannot be read: it is built anew
        return None


def _install(definition: RuntimeDefinition, prefix: Path, settings: Settings, say: Say) -> Installed:
    if definition.kind == "system":
        return system.install(definition, say)
    if definition.kind == "conda":
        from forge_orchestration.runtimes import conda

        return conda.adopt(definition, say) if definition.prefix else conda.install(definition, prefix, settings, say)
    if definition.kind == "image":
        from forge_orchestration.runtimes import image

        return image.install(definition, settings, say)
    from forge_orchestration.runtimes import venv

    return venv.install(definition, prefix, settings, say)


def _build_aside(definition: RuntimeDefinition, aside: Path, settings: Settings, inside: Inside, say: Say) -> Runtime:
    started = time.monotonic()
    installed = _install(definition, aside / "prefix", settings, say)
    prefix = Path(installed.prefix or aside / "prefix")
    say(f"{definition.name}: sealing")
    entries = seal.make(prefix, installed.listed)
    runtime = Runtime(
        name=definition.name, kind=definition.kind, build=catalog.build_id(definition),
        content_digest=seal.content_digest(entries, installed.basis, installed.original), seal_digest=seal.seal_digest(entries),
        python=installed.python, base_prefix=installed.base_prefix, prefix=installed.prefix, mount=installed.mount,
        site_packages=installed.site_packages, activation=installed.activation, packages=installed.packages, built_at=time.time(),
        build_s=0.0, bytes=sum(entry.size for entry in entries), files=len(entries),
    )  # fmt: skip
    if findings := package_findings(runtime, prefix, {entry.path: entry for entry in entries}, settings):
        raise RuntimeCatalogError(f"What was installed for '{definition.name}' is not whole: {'; '.join(findings[:3])}.")
    seal.save(aside, catalog.tree(runtime, aside), entries)
    if installed.activation_script:
        usable = catalog.resolved(runtime, aside, time.time(), definition.limits)
        activation = inside.activation(usable, installed.activation_script)
        runtime = msgspec.structs.replace(runtime, activation=runtime.activation | activation)
    say(f"{definition.name}: testing it inside the sandbox")
    missing = inside.test(definition, catalog.resolved(runtime, aside, time.time(), definition.limits))
    (aside / "missing-libraries").write_text("".join(f"{one}\n" for one in sorted(missing)), "utf-8")
    # a self-test cannot write there; should it have, the seal would be wrong from the first day
    if findings := seal.compare(aside, catalog.tree(runtime, aside), full=False):
        raise RuntimeCatalogError(f"Runtime '{definition.name}' changed during its self-test: {findings[0]}.")
    runtime = msgspec.structs.replace(runtime, build_s=round(time.monotonic() - started, 3))
    write_atomically(aside / "runtime.json", msgspec.json.format(msgspec.json.encode(runtime), indent=2))
    return runtime


def _move_into_place(aside: Path, folder: Path, settings: Settings) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(aside, 0o700)
    linux.sync_file_system(aside)  # else a loss of power could leave files in place that are empty
    if folder.exists():
        _take_the_place(aside, folder, settings)
    else:
        os.rename(aside, folder)
    sync_folder(folder.parent)
    with contextlib.suppress(RuntimeCatalogError):  # what stays is removed by the next build, or by `forge runtimes gc`
        retention.remove_unused(settings)


def _take_the_place(aside: Path, folder: Path, settings: Settings) -> None:
    """At no moment is there no build: who is killed in between leaves the old one or the new one in place."""
    try:
        linux.exchange(aside, folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        retention.retire(folder, settings)  # a file system that cannot exchange two folders
        os.rename(aside, folder)
    else:
        retention.retire(aside, settings, folder.parent.name)


def remove_leftovers(name: str, settings: Settings) -> list[str]:
    """Remove what a killed build of `name` left, for whoever holds its lock; returns the names of the folders.

    A whole build among them may be the one that was in place, and mounted by executions: it is retired.
    """
    found = unfinished_builds(settings.runtimes_dir / ".building", name)
    for folder in found:
        _discard(folder, name, settings)
    return [folder.name for folder in found]


def _discard(folder: Path, name: str, settings: Settings) -> None:
    if not (folder / "runtime.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):  # it stays where it is, and the next build tries again
        retention.retire(folder, settings, name)


def unfinished_builds(building: Path, name: str) -> list[Path]:
    """Folders of builds of runtime `name` alone: a runtime called `name.more` is another one."""
    return [path for path in building.iterdir() if path.is_dir() and path.name.removesuffix(".old").rpartition(".")[0] == name]


@contextlib.contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build of this runtime is under way: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
