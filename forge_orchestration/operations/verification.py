"""Verifying a runtime: quickly against its seal, or in full, with what its packages say and with it running in the sandbox."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from forge_orchestration.engine import Engine
from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.model.health import CheckResult
from forge_orchestration.operations.self_test import InSandbox, missing_libraries
from forge_orchestration.runtimes import building, catalog, seal


class Verification(msgspec.Struct, kw_only=True):
    """What was found of one runtime.

    Attributes:
        tier: `quick` compares names, sizes, modes and times; `full` reads every file, and runs the self-test.
        findings: Sentences, each naming a file or a package; empty if all is well.
        files: How many files, folders and links it has.
    """

    runtime: str
    state: str
    tier: Literal["quick", "full"]
    findings: list[str]
    files: int
    took_s: float


def verify(engine: Engine, name: str, *, full: bool, say: Callable[[str], None] = lambda text: None) -> Verification:
    """Verify the runtime called `name`. A full verification is remembered: with findings, nothing starts in the runtime.

    Raises:
        RuntimeCatalogError: It is unknown, or not built.
    """
    settings = engine.settings
    definition = catalog.load_definition(name, settings)
    folder = catalog.chosen_folder(name, definition, settings)
    build = catalog.load_build(folder)
    if build is None:
        raise RuntimeCatalogError(f"Runtime '{name}' is not built.", f"Build it: forge runtimes build {name}")
    started = time.monotonic()
    if full:
        say(f"{name}: reading {build.files} files")
        tree = catalog.tree(build, folder)
        entries = seal.read(folder, tree)
        findings = seal.differences(folder, tree, entries)
        findings += building.package_findings(build, tree.prefix, {entry.path: entry for entry in entries}, settings)
        say(f"{name}: running it inside the sandbox")
        runtime = catalog.resolved(build, folder, time.time(), definition.limits)
        missing = missing_libraries(engine, runtime) - _known(folder)
        findings += [f"{one} is needed by a library, and is not there" for one in sorted(missing)]
        try:
            InSandbox(engine).self_test(definition, runtime)
        except RuntimeCatalogError as error:
            findings.append(" ".join(error.message.split()).rstrip("."))
        seal.keep_full_verdict(folder, findings)
    else:
        findings = []
    state, known = catalog.state(name, settings)
    return Verification(
        runtime=name, state=state, tier="full" if full else "quick", findings=findings or known, files=build.files,
        took_s=round(time.monotonic() - started, 3),
    )  # fmt: skip


def as_check(found: Verification) -> CheckResult:
    """What was found, as `forge doctor` (`seal`, quick) and `forge health --full` (`content`, full) show it."""
    passed = not found.findings
    remedy = "quarantine --release" if found.state == "quarantined" else "repair"
    more = f" and {len(found.findings) - 3} more" if len(found.findings) > 3 else ""
    return CheckResult(
        name="content" if found.tier == "full" else "seal", target=found.runtime, passed=passed,
        remedy="" if passed else f"forge runtimes {remedy} {found.runtime}", corruption=not passed and found.state != "quarantined",
        finding="; ".join(found.findings[:3]) + more if found.findings
        else f"{found.files} files, packages, libraries and self-test are as they were built" if found.tier == "full"
        else f"{found.files} files as sealed",
    )  # fmt: skip


def _known(folder: Path) -> set[str]:
    """What was missing when the runtime was built."""
    try:
        return set((folder / "missing-libraries").read_text("utf-8").split())
    except FileNotFoundError:
        return set()
