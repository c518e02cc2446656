"""One execution of `true`, by the way that every execution takes: what this host's protections really are, and not what they should be.

It has no runtime, no place in the queue and no row in the store, and nothing of it is kept.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from forge_orchestration.errors import SandboxError
from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id
from forge_orchestration.executors.base import PreparedExecution
from forge_orchestration.executors.local import LocalExecutor
from forge_orchestration.model.record import ExecutionRecord, Isolation, LogFacts
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.runtimes.catalog import ResolvedRuntime, Runtime
from forge_orchestration.settings import Settings, make_home

_NAME = "doctor"
_TIMEOUT_S = 60.0


def try_sandbox(settings: Settings) -> ExecutionRecord:
    """Run it; returns its record, whose folder is gone, with `isolation` and `enforced` as they were read back.

    Raises:
        ForgeError: It did not come to run, or did not end well; the sentence says why, and what to do.
    """
    make_home(settings)
    spec = AnalysisSpec(name=_NAME, command=("true",), limits=settings.defaults)
    folder = ExecutionFolder(settings.executions_dir, new_execution_id())
    executor = LocalExecutor(settings)
    executor.check()
    with tempfile.TemporaryDirectory(prefix="forge-", dir=settings.scratch_dir.parent) as nothing:
        # where this fails in between, its folder stays: by it `forge gc` finds what else is left of it
        folder.create()
        folder.write_record(_record(spec, folder))
        handle = executor.submit(spec, PreparedExecution(folder=folder, runtime=_no_runtime(Path(nothing)), inputs=()))
        if not executor.wait(handle, _TIMEOUT_S).is_final:
            executor.cancel(handle)
            executor.wait(handle, _TIMEOUT_S)
        record = executor.collect(handle)
        executor.cleanup(handle)
        folder.remove()
    if not record.succeeded or not isinstance(record.isolation, Isolation):
        raise SandboxError(f"An execution of `true` did not end well: {record.message}")
    return record


def _record(spec: AnalysisSpec, folder: ExecutionFolder) -> ExecutionRecord:
    return ExecutionRecord(
        execution_id=folder.id, analysis=spec.name, executor=LocalExecutor.name, host=os.uname().nodename, command=spec.command,
        limits=spec.limits, queued_at=time.time(), folder=str(folder.path),
        logs={stream: LogFacts(path=str(folder.log(stream))) for stream in ("stdout", "stderr")},
    )  # fmt: skip


def _no_runtime(nothing: Path) -> ResolvedRuntime:
    nothing.chmod(0o755)
    runtime = Runtime(
        name=_NAME, kind="none", build="", content_digest="", seal_digest="", python="", base_prefix="", packages={},
        built_at=0.0, build_s=0.0, bytes=0, files=0,
    )  # fmt: skip
    return ResolvedRuntime(
        runtime=runtime, prefix=nothing, extra_mounts=(), activation={}, site_packages=nothing, verified_at=time.time()
    )
