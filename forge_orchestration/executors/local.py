"""The `local` executor: sandboxes on this host."""

from __future__ import annotations

import functools

from forge_orchestration.executors.base import ExecutorCapabilities, PreparedExecution
from forge_orchestration.executors.supervised import SupervisedExecutor
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.sandbox import view
from forge_orchestration.sandbox.bubblewrap import find_bubblewrap
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.plan import LaunchPlan

_bubblewrap = functools.cache(find_bubblewrap)


class LocalExecutor(SupervisedExecutor):
    """Sandboxes that bubblewrap makes on this host."""

    name = "local"
    capabilities = ExecutorCapabilities(
        limits=frozenset({"memory", "cpus", "pids", "wall_time", "grace", "scratch", "log", "files", "open_files"}),
        runtime_kinds=frozenset({"venv", "conda", "system"}),
        reattach=True,
        where="in sandboxes of bubblewrap on this host",
        enforced_by="cgroups of this host, a file system of a fixed size for each execution, and its supervisor's clock",
        cannot=("no network", "no images"),
    )

    def check(self) -> None:
        _bubblewrap()
        super().check()

    def plan(self, spec: AnalysisSpec, execution: PreparedExecution, site: CgroupSite) -> LaunchPlan:
        return self._common_plan(spec, execution, site, binds=[], bubblewrap=_bubblewrap(), system=view.system_view())
