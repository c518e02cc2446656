"""Which executors there are: those that ship, and those that other packages register."""

from __future__ import annotations

import msgspec

from forge_orchestration.errors import ForgeError, SpecError
from forge_orchestration.executors.base import AnalysisExecutor, ExecutorCapabilities
from forge_orchestration.settings import Settings

GROUP = "forge_orchestration.executors"
SHIPPED = {
    "local": "forge_orchestration.executors.local:LocalExecutor",
    "docker": "forge_orchestration.executors.docker:DockerExecutor",
    "slurm": "forge_orchestration.executors.slurm:SlurmExecutor",
}
"""Loaded when they are asked for."""


def executor_names() -> list[str]:
    """Names that `--executor` and op config accept."""
    from importlib.metadata import entry_points

    return [*SHIPPED, *sorted({point.name for point in entry_points(group=GROUP)} - SHIPPED.keys())]


class ExecutorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One executor as `forge executors list` tells of it: whether it can be used here, or why not, and what its capabilities say."""

    name: str
    available: bool
    why: str = ""
    hint: str = ""
    where: str
    limits: list[str]
    enforced_by: str
    runtime_kinds: list[str]
    network_modes: list[str]
    reattach: bool
    cannot: list[str]


def executor_facts(settings: Settings) -> list[ExecutorFacts]:
    """Of each executor, those that cannot be used here among them."""
    return [_facts(name, settings) for name in executor_names()]


def _facts(name: str, settings: Settings) -> ExecutorFacts:
    why = hint = ""
    can = ExecutorCapabilities(limits=frozenset(), runtime_kinds=frozenset(), reattach=False)
    try:
        executor = make_executor(name, settings)
        can = executor.capabilities
        executor.check()
    except ForgeError as error:
        why, hint = error.message, error.hint or ""
    except Exception as error:  # another package's
        why = f"{type(error).__name__}: {error}"
    return ExecutorFacts(
        name=name, available=not why, why=why, hint=hint, where=can.where, limits=sorted(can.limits), enforced_by=can.enforced_by,
        runtime_kinds=sorted(can.runtime_kinds), network_modes=sorted(can.network_modes), reattach=can.reattach, cannot=list(can.cannot),
    )  # fmt: skip


def make_executor(name: str, settings: Settings) -> AnalysisExecutor:
    """The executor called `name`.

    Raises:
        SpecError: There is none.
    """
    if name in SHIPPED:
        from importlib import import_module

        module, _, kind = SHIPPED[name].partition(":")
        shipped: AnalysisExecutor = getattr(import_module(module), kind)(settings)
        return shipped
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP, name=name):
        executor: AnalysisExecutor = point.load()(settings)
        return executor
    raise SpecError(f"There is no executor '{name[:80]}'.", f"The executors are: {', '.join(executor_names())}.")
