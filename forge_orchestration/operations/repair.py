"""Building a runtime, and repairing one: its lock is built beside what is there, tested in the sandbox, and put in its place."""

from __future__ import annotations

from collections.abc import Callable

from forge_orchestration.engine import Engine
from forge_orchestration.health import last
from forge_orchestration.health.checks import runtime_check
from forge_orchestration.operations.self_test import InSandbox
from forge_orchestration.runtimes.building import build
from forge_orchestration.runtimes.catalog import Runtime

Say = Callable[[str], None]


def make(engine: Engine, name: str, *, force: bool = False, say: Say = lambda text: None) -> Runtime:
    """Build the runtime called `name`, or take the build that is there and whole; what was known of another one is forgotten.

    Args:
        force: Build anew in any case. Executions that have the old build mounted go on with it.

    Raises:
        RuntimeCatalogError: It cannot be built, or has failed its self-test; what was there is as it was.
    """
    made = build(name, engine.settings, InSandbox(engine), force=force, say=say)
    last.forget(engine.settings, name, made.built_at)
    last.keep(engine.settings, [runtime_check(name, engine.settings)], "quick")
    return made


def repair(engine: Engine, name: str, say: Say = lambda text: None) -> Runtime:
    """Build the runtime called `name` anew, exactly as its lock says.

    Raises:
        RuntimeCatalogError: As for `make`.
    """
    return make(engine, name, force=True, say=say)
