"""How little an executor needs: one whose "cluster" is this host, and whose scheduler is a shell that goes its own way.

What makes the sandbox and writes the record is `sandbox.node`, as on a real cluster.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time

import msgspec

from forge_orchestration.errors import SubmitError
from forge_orchestration.executions.folder import ExecutionFolder, write_atomically
from forge_orchestration.executors import node
from forge_orchestration.executors.base import ExecutionHandle, ExecutionState, ExecutorCapabilities, PreparedExecution
from forge_orchestration.executors.local import LocalExecutor
from forge_orchestration.executors.planned import PlannedExecutor
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.record import Cleanup
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.leftovers import close_in_its_place
from forge_orchestration.sandbox.process_identity import ProcessIdentity

_LOOK_S = 0.05
_START_S = 20.0


class ToyExecutor(PlannedExecutor):
    name = "toy"
    capabilities = ExecutorCapabilities(
        limits=LocalExecutor.capabilities.limits, runtime_kinds=LocalExecutor.capabilities.runtime_kinds, reattach=True,
        where="in processes of this host that nobody holds", enforced_by=LocalExecutor.capabilities.enforced_by,
    )  # fmt: skip

    def check(self) -> None:
        return None

    def submit(self, spec: AnalysisSpec, execution: PreparedExecution) -> ExecutionHandle:
        folder = execution.folder
        handle = ExecutionHandle(execution_id=folder.id, native_id=f"toy:{folder.id}")
        with folder.locked():  # the supervisor waits for it
            if (folder.path / "job").exists():
                return handle
            site = CgroupSite(version=2, mounts={"unified": node.NOWHERE}, parent="")
            write_atomically(folder.path / "plan.json", msgspec.json.encode(self._common_plan(spec, execution, site, binds=[])))
            settings = self._settings
            places = (folder.path, settings.cgroup.parent, settings.scratch_dir, settings.cache_dir)
            words = shlex.join([*node.entry_point(), *map(str, places)])
            script = f'read -r stat < /proc/$$/stat; set -- "$1" $stat; echo $$ ${{23}} > "$1"/job.pid; mv "$1"/job.pid "$1"/job; exec {words}'
            environment = {"PATH": os.environ["PATH"], "FORGE_NATIVE_ID": handle.native_id}
            subprocess.run(
                ["setsid", "--fork", "sh", "-c", script, "sh", folder.path], env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
            )  # fmt: skip
            deadline = time.monotonic() + _START_S
            while not (folder.path / "job").exists():
                if time.monotonic() > deadline:
                    raise SubmitError("The job did not start.")
                time.sleep(0.005)
            folder.write_record(msgspec.structs.replace(folder.read_record(), native_id=handle.native_id))
        return handle

    def wait(self, handle: ExecutionHandle, timeout_s: float | None = None) -> ExecutionState:
        folder = self._folder(handle)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            process = _process(folder)
            record = folder.read_record()
            if record.status.is_final:
                return ExecutionState(status=record.status)
            if process is None:
                with folder.locked(wait=False) as nobody_is_there:
                    if nobody_is_there:
                        record = close_in_its_place(
                            folder, self._settings, EndReason.EXECUTOR_ERROR, "The job ended without a word."
                        )
                        return ExecutionState(status=record.status)
            if deadline is not None and time.monotonic() >= deadline:
                return ExecutionState(status=record.status)
            time.sleep(_LOOK_S)

    def cancel(self, handle: ExecutionHandle) -> None:
        if (process := _process(self._folder(handle))) is not None:
            process.send(signal.SIGTERM)

    def cleanup(self, handle: ExecutionHandle) -> Cleanup:
        if (process := _process(self._folder(handle))) is not None and not self.poll(handle).is_final:
            process.send(signal.SIGKILL)
        return Cleanup(finished_at=time.time())


def _process(folder: ExecutionFolder) -> ProcessIdentity | None:
    """The job's process, if it still runs."""
    try:
        pid, start_time = map(int, (folder.path / "job").read_text().split())
    except FileNotFoundError:
        return None
    process = ProcessIdentity(pid=pid, start_time=start_time, boot_id=linux.boot_id())
    return process if process.is_alive else None
