"""`SandboxRunLauncher`: workers in groups of their own, ended with grace and then whole, known by more than a pid, told of truly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import msgspec
import pytest
from dagster._core.launcher.base import WorkerStatus

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ExecutorError, ForgeError, SpecError, StoreError
from forge_orchestration.operations.reconcile import reconcile
from forge_orchestration.operations.workers import RUN_WORKER, Worker, WorkerEnd, WorkerFolder, register_this_process
from forge_orchestration.orchestration.run_launcher import SandboxRunLauncher
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.cgroups.find import find_site
from forge_orchestration.sandbox.process_identity import ProcessIdentity
from forge_orchestration.settings import Settings, load_settings
from forge_orchestration_tests.conftest import leftovers, wait_until
from forge_orchestration_tests.integration.dagster_support import Deployment, wait_for

DEAD = ProcessIdentity(pid=2**22 + 5, start_time=17, boot_id=linux.boot_id())
ME = ProcessIdentity.of(os.getpid())
assert ME is not None

TREE = """
    import os, signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    time.sleep(600)
"""
GREEDY = "hold = bytearray(700 * 2**20); hold[::4096] = b'x' * len(hold[::4096])"


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    made = Deployment(tmp_path)
    monkeypatch.setenv("FORGE_HOME", str(made.home))
    (made.home / "dagster").mkdir()
    return made


@pytest.fixture
def settings(deployment: Deployment) -> Settings:
    return load_settings(deployment.home)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    home = tmp_path / "instance"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as made:
        yield made


@pytest.fixture
def launcher(instance: dg.DagsterInstance) -> SandboxRunLauncher:
    made = SandboxRunLauncher(None, memory="512MiB", pids=64, grace="1s")
    made.register_instance(instance)
    return made


def new_run(instance: dg.DagsterInstance, run_id: str | None = None, **facts: Any) -> dg.DagsterRun:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def job() -> None:
        nothing()

    return instance.create_run_for_job(job, run_id=run_id, status=dg.DagsterRunStatus.STARTED, **facts)


def launched(
    launcher: SandboxRunLauncher,
    run: dg.DagsterRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    *,
    resume: bool = False,
) -> None:
    """Launch a run whose worker is a script: what Dagster's own would do there is no matter of the launcher's."""
    import textwrap

    worker = tmp_path / "worker"
    worker.write_text(f"#!{sys.executable}\nimport sys\nORDER = sys.stdin.read()\n{textwrap.dedent(script)}\n")
    worker.chmod(0o755)
    origin = SimpleNamespace(executable_path=str(worker))
    stand_in = SimpleNamespace(run_id=run.run_id, job_code_origin=origin, job_name=run.job_name, dagster_run=run)
    monkeypatch.setattr(launcher, "_report", lambda _run, message: launcher._instance.report_engine_event(message, run))
    launcher._start(stand_in, resume=resume)  # type: ignore[arg-type]


def worker_of(settings: Settings, run_id: str) -> Worker:
    worker = WorkerFolder(settings.workers_dir, run_id).worker()
    assert worker is not None
    return worker


def end_of(settings: Settings, run_id: str) -> WorkerEnd:
    return wait_until("the worker's end", lambda: WorkerFolder(settings.workers_dir, run_id).end())


# -- what is written down ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written", [Worker(process=DEAD, keeper=ME), Worker(process=DEAD), WorkerEnd(exit_code=-9, oom_kills=1, killed_after_s=0.5)]
)
def test_what_is_known_survives_the_disk(tmp_path: Path, written: Worker | WorkerEnd) -> None:
    folder = WorkerFolder(tmp_path, "r")
    folder.began(Worker(process=DEAD))
    if isinstance(written, Worker):
        folder.began(written)
        assert (folder.worker(), folder.end()) == (written, None)
    else:
        folder.ended(written)
        assert folder.end() == written


def test_a_worker_that_begins_has_no_end_yet(tmp_path: Path) -> None:
    folder = WorkerFolder(tmp_path, "r")
    folder.began(Worker(process=DEAD))
    folder.ended(WorkerEnd(exit_code=0))
    folder.began(Worker(process=ME))  # type: ignore[arg-type]
    assert folder.end() is None


@pytest.mark.parametrize("run_id", ["", "..", "a/b", "-x", "a b", "ö", "x" * 101, "a\n", "../../etc"])
def test_a_run_id_that_is_no_name_is_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(SpecError, match="cannot name a worker"):
        WorkerFolder(tmp_path, run_id)


def test_a_torn_file_is_told(tmp_path: Path) -> None:
    folder = WorkerFolder(tmp_path, "r")
    folder.make()
    (folder.path / "worker.json").write_text('{"process": {"pid":')
    with pytest.raises(StoreError, match=r"worker\.json cannot be read"):
        folder.worker()


def test_a_command_registers_itself_and_a_worker_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_this_process(tmp_path, "r")
    assert WorkerFolder(tmp_path, "r").worker() == Worker(process=ME)  # type: ignore[arg-type]
    monkeypatch.setenv(RUN_WORKER, "s")
    register_this_process(tmp_path, "s")
    assert WorkerFolder(tmp_path, "s").worker() is None


# -- health --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker", "end", "status", "said"),
    [
        (None, None, WorkerStatus.RUNNING, "Nobody said who executes this run"),
        (Worker(process=ME), None, WorkerStatus.RUNNING, None),  # type: ignore[arg-type]
        (Worker(process=DEAD), None, WorkerStatus.FAILED, "was killed"),
        (Worker(process=DEAD, keeper=DEAD), WorkerEnd(exit_code=0), WorkerStatus.FAILED, "ended with exit code 0"),
        (Worker(process=DEAD, keeper=DEAD), WorkerEnd(exit_code=-9, oom_kills=2), WorkerStatus.FAILED, "no memory left"),
        # the pid is alive, and is another process': of another moment, of another boot
        (Worker(process=msgspec.structs.replace(ME, start_time=1)), None, WorkerStatus.FAILED, "was killed"),  # type: ignore[type-var]
        (Worker(process=msgspec.structs.replace(ME, boot_id="x")), None, WorkerStatus.FAILED, "was killed"),  # type: ignore[type-var]
    ],
)
def test_health(
    settings: Settings, instance: dg.DagsterInstance, launcher: SandboxRunLauncher, worker: Worker | None, end: WorkerEnd | None,
    status: WorkerStatus, said: str | None,
) -> None:  # fmt: skip
    run = new_run(instance)
    folder = WorkerFolder(settings.workers_dir, run.run_id)
    if worker is not None:
        folder.began(worker)
    if end is not None:
        folder.ended(end)
    health = launcher.check_run_worker_health(run)
    assert health.status is status
    assert said is None or said in (health.msg or "")


def test_where_nothing_can_be_told_no_second_worker_is_started(
    settings: Settings, instance: dg.DagsterInstance, launcher: SandboxRunLauncher
) -> None:
    run = new_run(instance)
    folder = WorkerFolder(settings.workers_dir, run.run_id)
    folder.make()
    (folder.path / "worker.json").write_text("{")
    health = launcher.check_run_worker_health(run)
    assert health.status is WorkerStatus.RUNNING and "cannot be told" in (health.msg or "")


def test_tags_are_not_believed(settings: Settings, instance: dg.DagsterInstance, launcher: SandboxRunLauncher) -> None:
    """Whoever launches a run chooses its tags: none of them may name a process that is then ended."""
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        told = json.dumps({"pid": bystander.pid})
        run = new_run(instance, tags={"forge/worker": told, "forge/pid": str(bystander.pid), "dagster/x": "../../etc"})
        assert launcher.terminate(run.run_id) is False
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None and ended.status is dg.DagsterRunStatus.CANCELED


# -- real workers --------------------------------------------------------------------------------------------------------


def test_a_worker_runs_within_its_budget_and_nothing_secret_is_an_argument(
    settings: Settings, instance: dg.DagsterInstance, launcher: SandboxRunLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(instance)
    launched(launcher, run, tmp_path, monkeypatch, "import time; print(ORDER, flush=True); time.sleep(600)")
    worker = worker_of(settings, run.run_id)
    site = find_site(settings.cgroup.parent)
    group = site.worker(run.run_id)
    assert group.pids() == [worker.process.pid]
    if site.version == 1:
        memory = Path(site.mounts["memory"], site.parent, "workers", run.run_id, "memory.limit_in_bytes")
        assert int(memory.read_text()) == 512 * 2**20
    words = Path(f"/proc/{worker.process.pid}/cmdline").read_bytes() + Path(f"/proc/{worker.keeper.pid}/cmdline").read_bytes()  # type: ignore[union-attr]
    assert b"instance" not in words and run.run_id.encode() not in words
    log = WorkerFolder(settings.workers_dir, run.run_id).log
    assert wait_for("the order", lambda: log.read_text()).count(run.run_id) == 1
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    assert launcher.terminate(run.run_id) is True
    wait_until("the end of the group", lambda: not any(path.exists() for path in group.paths))
    wait_until("nothing left", lambda: leftovers(settings.home) == [])


def test_a_tree_that_ignores_the_request_is_killed_whole_after_the_grace(
    settings: Settings, instance: dg.DagsterInstance, launcher: SandboxRunLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(instance)
    launched(launcher, run, tmp_path, monkeypatch, TREE)
    group = find_site(settings.cgroup.parent).worker(run.run_id)
    wait_until("two processes", lambda: len(group.pids()) == 2)
    asked = time.monotonic()
    assert launcher.terminate(run.run_id) is True
    end = end_of(settings, run.run_id)
    assert time.monotonic() - asked > 0.9, "it had its grace"
    assert (end.exit_code, end.killed_after_s) == (-signal.SIGKILL, 1.0)
    wait_until("the end of the group", lambda: not any(path.exists() for path in group.paths))
    wait_until(
        "the run's end", lambda: (ended := instance.get_run_by_id(run.run_id)) and ended.status is dg.DagsterRunStatus.CANCELED
    )
    wait_until("nothing left", lambda: leftovers(settings.home) == [])


def test_a_worker_without_memory_is_told_as_such(
    settings: Settings, instance: dg.DagsterInstance, launcher: SandboxRunLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(instance)
    launched(launcher, run, tmp_path, monkeypatch, f"print('before the end', flush=True); {GREEDY}")
    end = end_of(settings, run.run_id)
    assert end.exit_code == -signal.SIGKILL and end.oom_kills >= 1
    health = launcher.check_run_worker_health(run)
    assert health.status is WorkerStatus.FAILED and "no memory left within its own limit" in (health.msg or "")
    told = launcher.get_run_worker_debug_info(run)
    assert told is not None
    assert "its limit is 512.0 MiB" in told and "before the end" in told
    wait_until("nothing left", lambda: leftovers(settings.home) == [])


def test_a_second_launch_starts_no_second_worker(
    settings: Settings, instance: dg.DagsterInstance, launcher: SandboxRunLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two daemons would ask for it."""
    run = new_run(instance)
    launched(launcher, run, tmp_path, monkeypatch, "import time; time.sleep(600)")
    first = worker_of(settings, run.run_id)
    launched(launcher, run, tmp_path, monkeypatch, "import time; time.sleep(600)", resume=True)
    assert worker_of(settings, run.run_id) == first
    assert any("Not launched again" in entry.message for entry in instance.all_logs(run.run_id))
    os.kill(first.process.pid, signal.SIGKILL)
    assert end_of(settings, run.run_id).exit_code == -signal.SIGKILL
    wait_until("the keeper's end", lambda: not first.keeper.is_alive)  # type: ignore[union-attr]
    launched(launcher, run, tmp_path, monkeypatch, "import time; time.sleep(600)", resume=True)
    second = worker_of(settings, run.run_id)
    assert second != first and second.process.is_alive
    second.ask_to_end()
    wait_until("nothing left", lambda: leftovers(settings.home) == [])


def test_a_worker_goes_on_without_its_keeper_and_can_still_be_ended(
    settings: Settings, instance: dg.DagsterInstance, launcher: SandboxRunLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(instance)
    launched(launcher, run, tmp_path, monkeypatch, "import time; time.sleep(600)")
    worker = worker_of(settings, run.run_id)
    assert worker.keeper is not None
    os.kill(worker.keeper.pid, signal.SIGKILL)
    wait_until("the keeper's end", lambda: not worker.keeper.is_alive)  # type: ignore[union-attr]
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    assert launcher.terminate(run.run_id) is True
    wait_until("the worker's end", lambda: not worker.process.is_alive)
    wait_until(
        "the run's end", lambda: (ended := instance.get_run_by_id(run.run_id)) and ended.status is dg.DagsterRunStatus.CANCELED
    )
    engine = Engine(settings)
    assert reconcile(engine).removed == [f"group of the worker of run {run.run_id}"]
    assert reconcile(engine).removed == []
    wait_until("nothing left", lambda: leftovers(settings.home) == [])


def test_a_torn_file_of_one_run_is_told_and_the_groups_of_others_go(
    settings: Settings, instance: dg.DagsterInstance, launcher: SandboxRunLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(instance)
    launched(launcher, run, tmp_path, monkeypatch, "import time; time.sleep(600)")
    worker, folder = worker_of(settings, run.run_id), WorkerFolder(settings.workers_dir, run.run_id)
    assert worker.keeper is not None
    os.kill(worker.keeper.pid, signal.SIGKILL)
    os.kill(worker.process.pid, signal.SIGKILL)
    wait_until("their end", lambda: not worker.process.is_alive and not worker.keeper.is_alive)  # type: ignore[union-attr]
    (folder.path / "worker.json").write_text("{")
    report = reconcile(Engine(settings))
    assert report.removed == [] and len(report.problems) == 1 and run.run_id in report.problems[0]
    folder.began(worker)
    assert reconcile(Engine(settings)).removed == [f"group of the worker of run {run.run_id}"]
    wait_until("nothing left", lambda: leftovers(settings.home) == [])


def test_an_interpreter_that_is_not_there_is_told(
    settings: Settings, instance: dg.DagsterInstance, launcher: SandboxRunLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(instance)
    launched(launcher, run, tmp_path, monkeypatch, "")
    end_of(settings, run.run_id)
    (tmp_path / "worker").unlink()
    stand_in = SimpleNamespace(run_id=run.run_id, job_code_origin=SimpleNamespace(executable_path=str(tmp_path / "worker")))
    wait_until("the keeper's end", lambda: not worker_of(settings, run.run_id).keeper.is_alive)  # type: ignore[union-attr]
    launcher._start(stand_in, resume=False)  # type: ignore[arg-type]
    assert end_of(settings, run.run_id).exit_code == 127
    assert "No such file" in (launcher.get_run_worker_debug_info(run) or "")


def test_what_is_not_ours_is_not_resumed(settings: Settings, instance: dg.DagsterInstance, launcher: SandboxRunLauncher) -> None:
    run = new_run(instance)
    WorkerFolder(settings.workers_dir, run.run_id).began(Worker(process=DEAD))
    stand_in = SimpleNamespace(run_id=run.run_id, job_code_origin=SimpleNamespace(executable_path=sys.executable))
    with pytest.raises(ExecutorError, match="command that executed this run was killed"):
        launcher._start(stand_in, resume=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [{"memory": "much"}, {"memory": "-1GiB"}, {"memory": "1KiB"}, {"grace": "soon"}, {"pids": 0}, {"pids": -5}, {"cpus": 0.0}],
)
def test_a_wrong_budget_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ForgeError, match=r"run_launcher in dagster\.yaml"):
        SandboxRunLauncher(None, **config)  # type: ignore[arg-type]
