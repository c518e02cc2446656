"""`forge why`, `forge fingerprint` and `forge replay`."""

from __future__ import annotations

import argparse
import json
import sys

import msgspec

from forge_orchestration.cli.executions import folder_of
from forge_orchestration.cli.run import asked_specs, canceled_by_signals
from forge_orchestration.cli.show import print_table
from forge_orchestration.engine import Engine
from forge_orchestration.errors import SpecError
from forge_orchestration.operations.replay import Replayed, replay
from forge_orchestration.operations.why import explain_stages
from forge_orchestration.resume.changes import shortened
from forge_orchestration.settings import load_settings


def explain(arguments: argparse.Namespace) -> int:
    """`forge why`."""
    settings = load_settings()
    specs = asked_specs(arguments, settings)
    engine = Engine(settings)
    found = explain_stages(engine, specs)
    engine.close()
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(found if len(found) > 1 else found[0]), indent=2).decode())
        return 0
    for spec, one in zip(specs, found, strict=True):
        print(one.sentence if len(found) == 1 else f"{spec.name}: {one.sentence}", flush=True)
        if one.changes:
            print_table(
                [{"part": change.part, "before": shortened(change.before), "now": shortened(change.now)} for change in one.changes]
            )
    return 0


def show_fingerprint(arguments: argparse.Namespace) -> int:
    """`forge fingerprint`."""
    settings = load_settings()
    specs = asked_specs(arguments, settings)
    if len(specs) > 1:
        raise SpecError(f"Each stage of '{arguments.analysis}' has a fingerprint of its own.", "Name one: --stage STAGE")
    engine = Engine(settings)
    found = engine.fingerprint(specs[0])
    engine.close()
    if arguments.json:
        print(json.dumps({"fingerprint": found.digest, "parts": found.parts}, indent=2))
    else:
        print(found.digest)
        print_table([{"part": name, "value": shortened(value)} for name, value in found.parts.items()])
    return 0


def replay_execution(arguments: argparse.Namespace) -> int:
    """`forge replay`: 0 if every output is identical, 1 if one is not, or if it failed."""
    settings = load_settings()
    record = folder_of(arguments.execution, settings).read_record()
    engine = Engine(settings)
    with canceled_by_signals() as (cancel, _):
        found = replay(
            engine, record, executor=arguments.executor, force=arguments.force, cancel=cancel,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )  # fmt: skip
    engine.close()
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        _print_replayed(found)
    return 0 if found.verdict == "identical" else 1


def _print_replayed(found: Replayed) -> None:
    for change in found.changed:
        print(f"no longer the same: {change}")
    if found.verdict == "identical":
        print(f"identical: {found.outputs} output{'' if found.outputs == 1 else 's'} of {found.original} [{found.execution_id}]")
    elif found.verdict == "failed":
        print(f"failed: the replay of {found.original} ended as {found.end_reason} [{found.execution_id}]")
    else:
        print(f"different: {len(found.differences)} of {found.outputs} outputs of {found.original} [{found.execution_id}]")
        for one in found.differences:
            print(f"  {one.path} {one.what}")
