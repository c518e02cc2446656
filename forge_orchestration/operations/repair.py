"""Repairing a runtime: exactly its lock is built anew beside what is there, tested in the sandbox, and put in its place."""

from __future__ import annotations

from collections.abc import Callable

from forge_orchestration.engine import Engine
from forge_orchestration.operations.self_test import sandboxed_self_test
from forge_orchestration.runtimes.catalog import Runtime
from forge_orchestration.runtimes.venv import build


def repair(engine: Engine, name: str, say: Callable[[str], None] = lambda text: None) -> Runtime:
    """Rebuild the runtime called `name`. Executions that have the old build mounted go on with it.

    Raises:
        RuntimeCatalogError: It cannot be built, or has failed its self-test; what was there is as it was.
    """
    return build(name, engine.settings, sandboxed_self_test(engine), force=True, say=say)
