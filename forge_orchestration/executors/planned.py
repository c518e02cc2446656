"""What executors have in common whose executions follow a launch plan, and leave logs and record in a folder that is seen here."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from forge_orchestration.errors import ExecutorError
from forge_orchestration.executions import forge_checkpoint
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.messages import pipes_environment
from forge_orchestration.executors.base import LOG_READ_BYTES, AnalysisExecutor, ExecutionHandle, ExecutionState, PreparedExecution
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.sandbox import view
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.plan import Bind, ContainerPlan, LaunchPlan
from forge_orchestration.settings import Settings

_LIB = (Path(forge_checkpoint.__file__),)
"""What analyses may import."""


class PlannedExecutor(AnalysisExecutor):
    """One deployment's executor."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def poll(self, handle: ExecutionHandle) -> ExecutionState:
        return self.wait(handle, 0)

    def logs(self, handle: ExecutionHandle, stream: str, offset: int) -> bytes:
        folder = self._folder(handle)
        try:
            with open(folder.messages if stream == "messages" else folder.log(stream), "rb", buffering=0) as file:
                file.seek(offset)
                return file.read(LOG_READ_BYTES)
        except FileNotFoundError:
            return b""

    def collect(self, handle: ExecutionHandle) -> ExecutionRecord:
        record = self._folder(handle).read_record()
        if not record.status.is_final:
            raise ExecutorError(f"Execution {handle.execution_id} has not ended: it is {record.status}.")
        return record

    def reattach(self, native_id: str, execution_id: str) -> ExecutionHandle:
        return ExecutionHandle(execution_id=execution_id, native_id=native_id)

    def _folder(self, handle: ExecutionHandle) -> ExecutionFolder:
        return ExecutionFolder(self._settings.executions_dir, handle.execution_id)

    def _common_plan(
        self, spec: AnalysisSpec, execution: PreparedExecution, site: CgroupSite, *, binds: list[Bind], bubblewrap: str = "",
        system: tuple[tuple[str, ...], dict[str, str]] = ((), {}), container: ContainerPlan | None = None,
    ) -> LaunchPlan:  # fmt: skip
        """The plan, with what every sandbox gets beside `binds`."""
        settings, runtime, folder = self._settings, execution.runtime, execution.folder
        binds += [bind(str(path), target) for target, path in runtime.mounts.items()]
        binds += [bind(str(path), f"{view.LIB}/{path.name}") for path in _LIB]
        if folder.analysis.is_dir():
            binds.append(bind(str(folder.analysis), view.ANALYSIS))
        binds += [
            Bind(source=item.path, target=f"{view.INPUTS}/{item.name}", device=item.device, inode=item.inode, owner=item.owner)
            for item in execution.inputs
        ]
        pipes = pipes_environment(
            spec.name.replace(".", "/"), spec.dagster_run_id or folder.id, spec.params, view.MESSAGES, spec.partition
        )
        return LaunchPlan(
            execution_id=folder.id, analysis=spec.name.replace(".", "/"), folder=str(folder.path), scratch_dir=str(settings.scratch_dir), bubblewrap=bubblewrap, command=spec.command,
            environment=view.environment(
                activation=runtime.activation, declared=pipes | spec.env, seed=spec.seed, threads=spec.threads, deadline=0.0,
                partition=spec.partition,
            ),
            limits=spec.limits, system_binds=system[0], system_links=system[1], binds=tuple(binds),
            outputs=spec.outputs, checks=spec.checks, parameters_json=msgspec.json.encode(spec.params).decode(), cgroup=site,
            identity=settings.identity, messages=settings.messages, output_caps=settings.outputs, supervision=settings.supervision, isolation=settings.isolation,
            neighbours=settings.neighbours, checkpoint=execution.checkpoint, container=container,
        )  # fmt: skip


def bind(source: str, target: str) -> Bind:
    """A file or folder of the host, as it is now."""
    facts = os.stat(source)
    closed = not facts.st_mode & 0o004
    return Bind(
        source=source,
        target=target,
        device=facts.st_dev,
        inode=facts.st_ino,
        owner=(facts.st_uid, facts.st_gid) if closed else None,
    )
