"""`SandboxRunLauncher`: each run's worker in a group of its own, with a budget for control code, and a keeper that sees its end.

An analysis is in another group, so its want of memory never ends the worker that waits for it. Whoever launches a run may be
restarted: the worker, and the runs of others, go on.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

import dagster as dg
import msgspec
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, ResumeRunContext, RunLauncher, WorkerStatus
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ExecutorError, ForgeError
from forge_orchestration.executions.logs import tail
from forge_orchestration.executions.messages import printable
from forge_orchestration.model.limits import Limits, updated_limits
from forge_orchestration.operations.take_over import cancel_run
from forge_orchestration.operations.workers import Worker, WorkerFolder
from forge_orchestration.orchestration.run_worker import RunOrder
from forge_orchestration.orchestration.worker_keeper import Order
from forge_orchestration.sandbox.cgroups.find import scope_prefix
from forge_orchestration.settings import Settings, load_settings
from forge_orchestration.units import format_bytes

_START_S = 30.0
_AFTER_GRACE_S = 10.0
_LOG_BYTES = 4096
_package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# -I: nothing of the caller's Python environment reaches the keeper
_KEEPER = (
    sys.executable, "-I", "-c",
    f"import sys; sys.path.insert(0, {_package_root!r}); from forge_orchestration.orchestration.worker_keeper import main; main()",
)  # fmt: skip


class SandboxRunLauncher(RunLauncher, ConfigurableClass):
    """Launches, resumes, watches and ends the workers of runs on this host.

    Args:
        memory: Of a worker and what it starts itself, such as "1GiB".
        cpus: Processor cores of a worker; None for all of the host's.
        pids: Processes and threads of a worker.
        grace: From the request to end a run until everything of its worker is killed, such as "30s". Longer than the grace of
            executions: the worker ends them, and waits for that.
    """

    def __init__(
        self, inst_data: ConfigurableClassData | None = None, *, memory: str = "1GiB", cpus: float | None = None, pids: int = 512,
        grace: str = "30s",
    ) -> None:  # fmt: skip
        self._inst_data = inst_data
        wanted = {"memory": memory, "cpus": cpus if cpus is not None else float(os.cpu_count() or 1), "pids": pids, "grace": grace}
        self._limits = updated_limits(Limits(), wanted, "run_launcher in dagster.yaml")
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> Mapping[str, dg.Field]:
        """The keys of `config` in `dagster.yaml`."""
        return {
            "memory": dg.Field(dg.StringSource, default_value="1GiB", description="Memory of a run's worker."),
            "cpus": dg.Field(dg.Noneable(dg.Float), default_value=None, description="Processor cores of a run's worker."),
            "pids": dg.Field(dg.IntSource, default_value=512, description="Processes and threads of a run's worker."),
            "grace": dg.Field(dg.StringSource, default_value="30s", description="From the request to end until it is killed."),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> "SandboxRunLauncher":
        """As Dagster makes it from `dagster.yaml`."""
        return cls(inst_data, **config_value)

    # -- starting -------------------------------------------------------------------------------------------------------

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the worker of a run; it has begun, within its limits, when this returns.

        Raises:
            ForgeError: It was not started; the sentence says why.
        """
        self._start(context.dagster_run, resume=False)

    @property
    def supports_resume_run(self) -> bool:
        return True

    def resume_run(self, context: ResumeRunContext) -> None:
        """Start another worker in the place of one that has died.

        Raises:
            ForgeError: It was not started, or it is not ours to start: Dagster then takes the run for failed.
        """
        self._start(context.dagster_run, resume=True)

    def _start(self, run: dg.DagsterRun, *, resume: bool) -> None:
        settings = load_settings()
        folder = WorkerFolder(settings.workers_dir, run.run_id)
        origin = run.job_code_origin
        if origin is None:
            raise ExecutorError(f"Run {run.run_id} does not say which code it is of.", "Launch it again.")
        with folder.locked():
            before = folder.worker()
            if before is not None and before.process.is_alive:
                # two daemons, or one that was slow to see the first's work
                self._report(run, f"Not launched again: its worker runs already (pid {before.process.pid}).")
                return
            if resume and before is not None and before.keeper is None:
                raise ExecutorError("The command that executed this run was killed.", "Launch it again.")
            if before is not None and before.keeper is not None and not before.keeper.wait(_START_S):
                # it is writing down that worker's end, and ends what is left in the group that the next one will be in
                raise ExecutorError(
                    f"The last worker of run {run.run_id} has ended, and its keeper (pid {before.keeper.pid}) has not."
                )
            order = RunOrder(run_id=run.run_id, instance_ref=serialize_value(self._instance.get_ref()), resume=resume)
            worker = self._have_kept(
                settings,
                Order(
                    workers_dir=str(settings.workers_dir), run_id=run.run_id,
                    # the code location's own interpreter, whatever PATH says
                    command=[origin.executable_path, "-m", "forge_orchestration.orchestration.run_worker"],
                    stdin=msgspec.json.encode(order).decode(), cgroup_parent=settings.cgroup.parent, limits=self._limits,
                ),
                folder,
            )  # fmt: skip
        memory = format_bytes(self._limits.memory_bytes)
        self._report(run, f"{'Resumed' if resume else 'Launched'} in a worker of its own (pid {worker.process.pid}, {memory}).")

    def _have_kept(self, settings: Settings, order: Order, folder: WorkerFolder) -> Worker:
        """Start a keeper and wait for its answer."""
        command = (*scope_prefix(settings.cgroup.parent), *_KEEPER)
        # no preexec_fn: this process has threads
        keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        threading.Thread(target=keeper.wait, name="keeper of a run", daemon=True).start()  # reaps it
        assert keeper.stdin is not None and keeper.stdout is not None
        giving_up = threading.Timer(_START_S, keeper.kill)
        giving_up.start()
        try:
            with keeper.stdin, keeper.stdout:
                keeper.stdin.write(msgspec.json.encode(order))
                keeper.stdin.close()
                answer = keeper.stdout.readline()
        except OSError as error:
            answer = str(error).encode() + b"\n"
        finally:
            giving_up.cancel()
        worker = folder.worker()
        if answer != b"\n" or worker is None:
            if worker is not None:
                worker.process.send(signal.SIGKILL)  # a keeper that was given up may have come so far: the run counts as failed
            raise ExecutorError(
                f"The worker of run {order.run_id} was not started: {answer.decode(errors='replace').strip() or 'its keeper ended'}",
                "See: forge doctor",
            )
        return worker

    # -- ending ---------------------------------------------------------------------------------------------------------

    def terminate(self, run_id: str) -> bool:
        """Have a run end, whoever started it: its executions first, with their grace, and after that of the launcher everything.

        Returns:
            Whether there was a worker to be asked.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        engine = Engine(load_settings())
        worker = WorkerFolder(engine.settings.workers_dir, run_id).worker()
        self._instance.report_run_canceling(run)
        if worker is None or not worker.process.is_alive:
            cancel_run(engine, run_id)
            self._instance.report_run_canceled(run, message="It had no worker any more. Its executions are ended.")
            return False
        worker.ask_to_end()
        threading.Thread(target=self._see_it_end, args=(engine, run_id, worker), name=f"end of {run_id}", daemon=True).start()
        return True

    def _see_it_end(self, engine: Engine, run_id: str, worker: Worker) -> None:
        """A worker that had to be killed can neither end its executions nor say that its run was canceled."""
        if not worker.process.wait(self._limits.grace_s + _AFTER_GRACE_S):
            worker.process.send(signal.SIGKILL)  # one without a keeper
        cancel_run(engine, run_id)
        run = self._instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            self._instance.report_run_canceled(
                run, message="Its worker ended, or was killed, before it could say that it was canceled."
            )

    # -- looking --------------------------------------------------------------------------------------------------------

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether a run that has not ended has somebody who executes it; asked by Dagster's monitor.

        `RUNNING` unless its worker is known to be dead: any other answer has the monitor start a second one beside it.
        """
        try:
            folder = WorkerFolder(load_settings().workers_dir, run.run_id)
            worker, end = folder.worker(), folder.end()
        except ForgeError as error:
            return CheckRunHealthResult(WorkerStatus.RUNNING, msg=f"It cannot be told who executes this run: {error}")
        if worker is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, msg="Nobody said who executes this run.")
        pid = str(worker.process.pid)
        if worker.process.is_alive:
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=pid)
        # never SUCCESS: a worker that ended before its run did has failed it, whatever its exit code
        return CheckRunHealthResult(WorkerStatus.FAILED, msg=f"Its worker {end or 'was killed'}.", run_worker_id=pid)

    def get_run_worker_debug_info(self, run: dg.DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """How a worker ended, the memory that it took, and the end of what it printed."""
        try:
            folder = WorkerFolder(load_settings().workers_dir, run.run_id)
            worker, end = folder.worker(), folder.end()
        except ForgeError as error:
            return str(error)
        if worker is None:
            return None
        told = [f"Worker: pid {worker.process.pid}, {'launched by Forge' if worker.keeper else 'a command'}."]
        if end is not None:
            peak = f", having used {format_bytes(end.peak_memory_bytes)}" if end.peak_memory_bytes is not None else ""
            told.append(f"It {end}{peak}; its limit is {format_bytes(self._limits.memory_bytes)}.")
        if include_container_logs and (log := tail(folder.log, _LOG_BYTES)):
            told.append(f"The end of {folder.log}:\n{printable(log.decode('utf-8', 'backslashreplace'))}")
        return "\n".join(told)

    def _report(self, run: dg.DagsterRun, message: str) -> None:
        self._instance.report_engine_event(message, run, cls=type(self))
