"""One execution of `true`, by the way that every execution takes: what this host's protections really are, and not what they should be.

It has no runtime and no place in the queue, and nothing of it is kept. Who is killed meanwhile leaves it to `recovery`, which removes it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

from forge_orchestration.errors import ForgeError, SandboxError, StuckError
from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id
from forge_orchestration.executions.store import Store
from forge_orchestration.executors.base import ExecutionHandle, PreparedExecution
from forge_orchestration.executors.local import LocalExecutor
from forge_orchestration.executors.recovery import TRIAL
from forge_orchestration.model.record import ExecutionRecord, Isolation, LogFacts
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.runtimes.catalog import ResolvedRuntime, Runtime
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.view import RUNTIME
from forge_orchestration.settings import Settings, make_home

_TIMEOUT_S = 60.0


def try_sandbox(settings: Settings) -> ExecutionRecord:
    """Run it; returns its record, whose folder is gone, with `isolation` and `enforced` as they were read back.

    Raises:
        ForgeError: It did not come to run, or did not end well; the sentence says why, and what to do.
    """
    make_home(settings)
    spec = AnalysisSpec(name=TRIAL, command=("true",), limits=settings.defaults)
    folder = ExecutionFolder(settings.executions_dir, new_execution_id())
    executor, store = LocalExecutor(settings), Store(settings.store_path)
    executor.check()
    store.begin(_record(spec, folder), os.getpid(), linux.start_time(os.getpid()) or 0)
    try:
        record = _run(executor, spec, folder, settings)
    except StuckError:  # its supervisor is still at it
        raise
    except BaseException:
        with contextlib.suppress(ForgeError, OSError):  # row and folder stay then: by them what else is left is found
            _forget(executor, store, folder)
        raise
    _forget(executor, store, folder)
    if not record.succeeded or not isinstance(record.isolation, Isolation):
        raise SandboxError(f"An execution of `true` did not end well: {record.message}")
    return record


def _run(executor: LocalExecutor, spec: AnalysisSpec, folder: ExecutionFolder, settings: Settings) -> ExecutionRecord:
    folder.create()
    folder.write_record(_record(spec, folder))
    with tempfile.TemporaryDirectory(prefix="forge-", dir=settings.home) as nothing:
        handle = executor.submit(spec, PreparedExecution(folder=folder, runtime=_no_runtime(Path(nothing)), inputs=()))
        if not executor.wait(handle, _TIMEOUT_S).is_final:
            executor.cancel(handle)
            if not executor.wait(handle, _TIMEOUT_S).is_final:
                raise StuckError(f"An execution of `true` has not ended after {2 * _TIMEOUT_S:.0f} s: {folder.id}.")
        return executor.collect(handle)


def _forget(executor: LocalExecutor, store: Store, folder: ExecutionFolder) -> None:
    executor.cleanup(ExecutionHandle(execution_id=folder.id, native_id=""))
    folder.remove()
    store.forget(folder.id)


def _record(spec: AnalysisSpec, folder: ExecutionFolder) -> ExecutionRecord:
    return ExecutionRecord(
        execution_id=folder.id, analysis=spec.name, executor=LocalExecutor.name, host=os.uname().nodename, command=spec.command,
        limits=spec.limits, queued_at=time.time(), folder=str(folder.path),
        logs={stream: LogFacts(path=str(folder.log(stream))) for stream in ("stdout", "stderr")},
    )  # fmt: skip


def _no_runtime(nothing: Path) -> ResolvedRuntime:
    nothing.chmod(0o755)
    runtime = Runtime(
        name=TRIAL, kind="none", build="", content_digest="", seal_digest="", python="", packages={},
        built_at=0.0, build_s=0.0, bytes=0, files=0,
    )  # fmt: skip
    return ResolvedRuntime(
        runtime=runtime, prefix=nothing, mounts={RUNTIME: nothing}, activation={}, site_packages=None, verified_at=time.time()
    )
