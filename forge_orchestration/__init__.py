"""Forge: runs scientific analyses in named runtimes, inside sandboxes, launched from Dagster, the command line or Python.

>>> import forge_orchestration
>>> record = forge_orchestration.run(["python", "-c", "print(6 * 7)"], limits={"memory": "256MiB"})
>>> record.end_reason
<EndReason.COMPLETED: 'completed'>
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forge_orchestration.api import ExecutionFailed, run
    from forge_orchestration.errors import (
        BackendUnavailableError,
        ExecutorError,
        ForgeError,
        HostError,
        InternalError,
        RuntimeCatalogError,
        SandboxError,
        SpecError,
        StoreError,
        SubmitError,
    )
    from forge_orchestration.metrics.frame import executions_frame
    from forge_orchestration.model.limits import Limits
    from forge_orchestration.model.reasons import EndReason, Status
    from forge_orchestration.model.record import ExecutionRecord
    from forge_orchestration.model.spec import AnalysisSpec
    from forge_orchestration.orchestration.component import Analysis
    from forge_orchestration.orchestration.functions import forge_asset, forge_op

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "AnalysisSpec",
    "BackendUnavailableError",
    "EndReason",
    "ExecutionFailed",
    "ExecutionRecord",
    "ExecutorError",
    "ForgeError",
    "HostError",
    "InternalError",
    "Limits",
    "RuntimeCatalogError",
    "SandboxError",
    "SpecError",
    "Status",
    "StoreError",
    "SubmitError",
    "executions_frame",
    "forge_asset",
    "forge_op",
    "run",
]

_MODULES = {
    "run": "api", "ExecutionFailed": "api", "Limits": "model.limits", "EndReason": "model.reasons", "Status": "model.reasons",
    "ExecutionRecord": "model.record", "AnalysisSpec": "model.spec", "executions_frame": "metrics.frame", "Analysis": "orchestration.component", "forge_asset": "orchestration.functions",
    "forge_op": "orchestration.functions",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Each name is loaded at its first use: the command line and the spawner start with nothing that they do not need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
