"""`forge executors list`."""

from __future__ import annotations

import argparse
import sys

import msgspec

from forge_orchestration.executors.registry import ExecutorFacts, executor_facts
from forge_orchestration.settings import load_settings


def list_executors(arguments: argparse.Namespace) -> int:
    """Each executor: whether it can be used here and why not, what it can do, and what it cannot."""
    found = executor_facts(load_settings())
    if arguments.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
        return 0
    for one in found:
        _print(one)
    return 0


def _print(facts: ExecutorFacts) -> None:
    print(f"{facts.name}: {'available' if facts.available else f'not available: {facts.why}'}")
    if facts.hint:
        print(f"  {facts.hint}")
    rows = {
        "where": facts.where, "runtimes": ", ".join(facts.runtime_kinds), "networks": ", ".join(facts.network_modes),
        "limits": ", ".join(facts.limits), "enforced by": facts.enforced_by, "taken over": "by any process of the deployment" if facts.reattach else "by nobody",
        "cannot": "; ".join(facts.cannot),
    }  # fmt: skip
    for name, text in rows.items():
        if text:
            print(f"  {name:<12} {text}")
