"""`forge runtimes list|show|build|verify|repair|quarantine`."""

from __future__ import annotations

import argparse
import json
import sys

import msgspec

from forge_orchestration.cli.show import print_table
from forge_orchestration.engine import Engine
from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.executions.folder import write_atomically
from forge_orchestration.runtimes import catalog, retention
from forge_orchestration.settings import Settings, load_settings, make_home
from forge_orchestration.units import format_bytes


def list_runtimes(arguments: argparse.Namespace) -> int:
    """All runtimes and their state."""
    settings = load_settings()
    rows = [_row(name, settings) for name in catalog.runtime_names(settings)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows)
    return 0


def show_runtime(arguments: argparse.Namespace) -> int:
    """One runtime: definition, build, packages, and what is wrong with it."""
    settings = load_settings()
    definition = catalog.load_definition(arguments.runtime, settings)
    folder = catalog.build_folder(definition, settings)
    build = catalog.load_build(folder)
    state, findings = catalog.state(definition.name, settings)
    shown = {
        "name": definition.name, "state": state, "findings": findings, "description": definition.description, "kind": definition.kind,
        "definition": definition.folder, "prefix": str(folder / "prefix") if build else None,
        "build": msgspec.to_builtins(build) if build else None,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(shown, indent=2))
        return 0
    for name, value in shown.items():
        if name not in ("build", "findings"):
            print(f"{name:<16} {value if value is not None else '-'}")
    for finding in findings:
        print(f"{'finding':<16} {finding}")
    if build:
        print(
            f"{'content digest':<16} {build.content_digest}\n{'seal digest':<16} {build.seal_digest}\n{'python':<16} {build.python}"
        )
        print(f"{'size':<16} {format_bytes(build.bytes)} in {build.files} files, built in {build.build_s:.1f} s")
        print("packages         " + (", ".join(f"{name} {version}" for name, version in build.packages.items()) or "none"))
    return 0


def build_runtimes(arguments: argparse.Namespace) -> int:
    """Build runtimes, one after the other; what is there and whole is reused."""
    from forge_orchestration.operations.self_test import sandboxed_self_test
    from forge_orchestration.runtimes.venv import build

    settings = load_settings()
    for name in arguments.runtimes:  # all names are known before the first is built
        catalog.load_definition(name, settings)
    engine = Engine(settings)
    for name in arguments.runtimes:
        made = build(
            name,
            settings,
            sandboxed_self_test(engine),
            force=arguments.force,
            say=_say,
        )
        _print_ready(made)
    return 0


def verify_runtimes(arguments: argparse.Namespace) -> int:
    """Verify runtimes; exit status 4 if one of them is not as it should be."""
    from forge_orchestration.operations.verification import verify

    settings = load_settings()
    names = arguments.runtimes or [
        name for name in catalog.runtime_names(settings) if catalog.state(name, settings)[0] != "missing"
    ]
    engine = Engine(settings)
    done = [verify(engine, name, full=arguments.full, say=_say) for name in names]
    if arguments.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(done), indent=2) + b"\n")
    else:
        for one in done:
            print(f"{one.runtime}: {one.state} ({one.tier}, {one.files} files in {one.took_s:.2f} s)")
            for finding in one.findings:
                print(f"  {finding}")
            if one.findings:
                print(f"  → forge runtimes repair {one.runtime}")
    return 4 if any(one.findings for one in done) else 0


def repair_runtime(arguments: argparse.Namespace) -> int:
    """Build a runtime anew from its lock, beside the one that is there, and put it in its place."""
    from forge_orchestration.operations.repair import repair

    _print_ready(repair(Engine(load_settings()), arguments.runtime, _say))
    return 0


def quarantine_runtime(arguments: argparse.Namespace) -> int:
    """Keep a build from being used, or release it."""
    settings = load_settings()
    definition = catalog.load_definition(arguments.runtime, settings)
    folder = catalog.build_folder(definition, settings)
    if catalog.load_build(folder) is None:
        raise RuntimeCatalogError(f"Runtime '{definition.name}' is not built.", f"Build it: forge runtimes build {definition.name}")
    if arguments.release:
        (folder / "quarantine").unlink(missing_ok=True)
    else:
        write_atomically(folder / "quarantine", (arguments.reason.strip() + "\n").encode())
    state, findings = catalog.state(definition.name, settings)
    print(f"{definition.name}: {state}" + (f" ({findings[0]})" if findings else ""))
    return 0


def collect_garbage(arguments: argparse.Namespace) -> int:
    """Remove builds that no definition asks for and no execution has mounted."""
    settings = load_settings()
    make_home(settings)
    for name in retention.retire_unasked(settings):
        print(f"no longer asked for: {name}")
    for name in retention.remove_unused(settings):
        print(f"removed: {name}")
    return 0


def _print_ready(made: catalog.Runtime) -> None:
    size = format_bytes(made.bytes)
    print(f"{made.name}: ready (content {made.content_digest[:12]}, {len(made.packages)} packages, {size})", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _row(name: str, settings: Settings) -> dict[str, object]:
    try:
        definition = catalog.load_definition(name, settings)
        folder = catalog.build_folder(definition, settings)
        build = catalog.load_build(folder)
        state, _ = catalog.state(name, settings)
    except RuntimeCatalogError as error:
        return {
            "runtime": name,
            "state": "unhealthy",
            "python": None,
            "packages": None,
            "content": None,
            "description": error.message,
        }
    return {
        "runtime": name, "state": state, "python": build.python if build else None, "packages": len(build.packages) if build else None,
        "content": build.content_digest[:12] if build else None, "description": definition.description,
    }  # fmt: skip
