"""`forge runtimes add|list|show|build|verify|repair|quarantine|diff|gc`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import msgspec

from forge_orchestration.cli.show import print_table
from forge_orchestration.engine import Engine
from forge_orchestration.errors import RuntimeCatalogError, SpecError
from forge_orchestration.executions.folder import write_atomically
from forge_orchestration.runtimes import catalog, retention, seal
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
    folder = catalog.chosen_folder(arguments.runtime, definition, settings)
    build = catalog.load_build(folder)
    state, findings = catalog.state(arguments.runtime, settings)
    shown = {
        "name": definition.name, "state": state, "findings": findings, "description": definition.description, "kind": definition.kind,
        "definition": definition.folder, "prefix": str(catalog.tree(build, folder).prefix) if build else None,
        "builds": catalog.build_ids(definition.name, settings),
        "build": msgspec.to_builtins(build) if build else None,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(shown, indent=2))
        return 0
    for name, value in shown.items():
        if name not in ("build", "builds", "findings"):
            print(f"{name:<16} {value if value is not None else '-'}")
    for finding in findings:
        print(f"{'finding':<16} {finding}")
    others = [one for one in catalog.build_ids(definition.name, settings) if build is None or one != build.build]
    if build:
        print(f"{'build':<16} {build.build}" + (f" (others: {', '.join(others)})" if others else ""))
        print(f"{'content digest':<16} {build.content_digest}\n{'seal digest':<16} {build.seal_digest}")
        print(f"{'python':<16} {build.python or '-'}")
        for variable, value in build.activation.items():
            print(f"{'variable':<16} {variable}={value}")
        print(f"{'size':<16} {format_bytes(build.bytes)} in {build.files} files, built in {build.build_s:.1f} s")
        print("packages         " + (", ".join(f"{name} {version}" for name, version in build.packages.items()) or "none"))
    return 0


def add_runtime(arguments: argparse.Namespace) -> int:
    """Define a runtime, locking what is not locked."""
    from forge_orchestration.runtimes.defining import define

    if sum(map(bool, (arguments.source is not None, arguments.packages, arguments.image))) != 1:
        raise SpecError(
            "A runtime is made of a source, of packages, or of an image.",
            "forge runtimes add NAME SOURCE, or forge runtimes add NAME --packages P, or forge runtimes add NAME --image I",
        )
    settings = load_settings()
    make_home(settings)
    source = Path(arguments.source) if arguments.source is not None else None
    made = define(
        arguments.runtime, settings, source=source, packages=arguments.packages, image=arguments.image, modules=arguments.modules,
        description=arguments.description, replace=arguments.replace,
    )  # fmt: skip
    print(
        f"{made.name}: defined ({made.kind}, {made.lock_path if made.lock else made.prefix or made.image}); next: forge runtimes build {made.name}"
    )
    return 0


def diff_runtimes(arguments: argparse.Namespace) -> int:
    """What differs between two builds."""
    settings = load_settings()
    first, second = (_build(name, settings) for name in arguments.runtimes)
    rows = []
    for name in sorted({*first[0].packages, *second[0].packages}):
        one, other = first[0].packages.get(name), second[0].packages.get(name)
        if one != other:
            rows.append({"package": name, arguments.runtimes[0]: one, arguments.runtimes[1]: other})
    files = seal.changed(first[1], second[1])
    if arguments.json:
        same = first[0].content_digest == second[0].content_digest
        print(json.dumps({"same_content": same, "packages": rows, "files": files}, indent=2))
        return 0
    if first[0].content_digest == second[0].content_digest:
        print(f"The same content: {first[0].content_digest}")
        return 0
    if rows:
        print_table(rows)
    print(f"{len(files)} files differ" + (f", {files[0]} among them" if files else ""))
    return 0


def _build(name: str, settings: Settings) -> tuple[catalog.Runtime, list[seal.Entry]]:
    folder = catalog.chosen_folder(name, catalog.load_definition(name, settings), settings)
    build = catalog.load_build(folder)
    if build is None:
        raise RuntimeCatalogError(f"Runtime '{name}' is not built.", f"Build it: forge runtimes build {name}")
    return build, seal.load(folder)


def build_runtimes(arguments: argparse.Namespace) -> int:
    """Build runtimes, one after the other; what is there and whole is reused."""
    from forge_orchestration.operations.repair import make

    settings = load_settings()
    for name in arguments.runtimes:  # all names are known before the first is built
        catalog.load_definition(name, settings)
    engine = Engine(settings)
    for name in arguments.runtimes:
        _print_ready(make(engine, name, force=arguments.force, say=_say))
    return 0


def verify_runtimes(arguments: argparse.Namespace) -> int:
    """Verify runtimes; exit status 4 if one of them is not as it should be."""
    from forge_orchestration.cli.host import keep
    from forge_orchestration.operations.verification import Verification, as_check, verify

    settings = load_settings()
    names = arguments.runtimes or [
        name for name in catalog.runtime_names(settings) if catalog.state(name, settings)[0] != "missing"
    ]
    engine = Engine(settings)
    done: list[Verification] = []
    for name in names:
        done.append(verify(engine, name, full=arguments.full, say=_say))
        keep(settings, [as_check(done[-1])], done[-1].tier)
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
    folder = catalog.chosen_folder(arguments.runtime, definition, settings)
    if catalog.load_build(folder) is None:
        raise RuntimeCatalogError(f"Runtime '{definition.name}' is not built.", f"Build it: forge runtimes build {definition.name}")
    if arguments.release:
        (folder / "quarantine").unlink(missing_ok=True)
    else:
        write_atomically(folder / "quarantine", (arguments.reason.strip() + "\n").encode())
    state, findings = catalog.state(arguments.runtime, settings)
    print(f"{arguments.runtime}: {state}" + (f" ({findings[0]})" if findings else ""))
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
            "kind": None,
            "state": "unhealthy",
            "python": None,
            "packages": None,
            "content": None,
            "description": error.message,
        }
    return {
        "runtime": name, "kind": definition.kind, "state": state, "python": (build.python or None) if build else None, "packages": len(build.packages) if build else None,
        "content": build.content_digest[:12] if build else None, "description": definition.description,
    }  # fmt: skip
