"""Which executors there are: the one that ships, and those that other packages register."""

from __future__ import annotations

from forge_orchestration.errors import SpecError
from forge_orchestration.executors.base import AnalysisExecutor
from forge_orchestration.settings import Settings

GROUP = "forge_orchestration.executors"


def executor_names() -> list[str]:
    """Names that `--executor` and op config accept."""
    from importlib.metadata import entry_points

    return ["local", *sorted({point.name for point in entry_points(group=GROUP)} - {"local"})]


def make_executor(name: str, settings: Settings) -> AnalysisExecutor:
    """The executor called `name`.

    Raises:
        SpecError: There is none.
    """
    if name == "local":
        from forge_orchestration.executors.local import LocalExecutor

        return LocalExecutor(settings)
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP, name=name):
        executor: AnalysisExecutor = point.load()(settings)
        return executor
    raise SpecError(f"There is no executor '{name[:80]}'.", f"The executors are: {', '.join(executor_names())}.")
