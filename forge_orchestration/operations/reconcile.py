"""Putting things right after a crash: every record final, and nothing of a dead execution left on the host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

import msgspec

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError, SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executors.admission import ledger_of
from forge_orchestration.executors.base import ExecutionHandle
from forge_orchestration.executors.local import LocalExecutor
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.identity import CLAIMS, uid_in_use
from forge_orchestration.sandbox.leftovers import remove_leftovers
from forge_orchestration.sandbox.supervisor_identity import read_supervisor


class Reconciled(msgspec.Struct, kw_only=True):
    """What was done: ids of executions, names of the rest, and what could not be done."""

    alive: int = 0
    closed: list[str] = []
    indexed: list[str] = []
    removed: list[str] = []
    problems: list[str] = []


def reconcile(engine: Engine) -> Reconciled:
    """Close executions whose supervisor and controller are gone, and remove what they left. Idempotent.

    What other deployments (another `FORGE_HOME`) do on this host is left alone.
    """
    report = Reconciled()
    known = (
        engine.store.ids()
    )  # before the folders: an execution that begins meanwhile has a folder without being known, never the reverse
    unfinished: set[str] = set(engine.store.unfinished())
    on_disk = {entry.name for entry in os.scandir(engine.settings.executions_dir) if entry.is_dir(follow_symlinks=False)}
    for execution_id in sorted(unfinished | (on_disk - known)):
        try:
            _reconcile_one(engine, execution_id, report)
        except (ForgeError, OSError) as error:
            report.problems.append(f"{execution_id}: {error}")
    for execution_id in known - on_disk - unfinished:
        engine.store.forget(execution_id)  # someone removed its folder
        report.removed.append(f"row of {execution_id}, whose folder is gone")
    _remove_scratch(engine, report)
    _release_uids(report)
    report.removed += [f"place of {one} in the queue" for one in ledger_of(engine.settings).drop_unheld()]
    _remove_builds(engine.settings.runtimes_dir / ".building", report)
    return report


def _reconcile_one(engine: Engine, execution_id: str, report: Reconciled) -> None:
    folder = ExecutionFolder(engine.settings.executions_dir, execution_id)
    if _is_alive(engine, folder):
        report.alive += 1
        return
    if not folder.record_path.exists():
        # killed between its row and its first record: nothing ran
        folder.remove()
        engine.store.forget(execution_id)
        report.removed.append(f"execution {execution_id}, which never began")
        return
    record = folder.read_record()
    if record.status.is_final:
        report.indexed.append(execution_id)
    else:
        executor = engine.executor("local")
        assert isinstance(executor, LocalExecutor)
        record = executor.close_lost(ExecutionHandle(execution_id=execution_id, native_id=record.native_id or ""))
        report.closed.append(execution_id)
    for torn in folder.path.glob(".*.json.*"):
        torn.unlink(missing_ok=True)
    engine.store.save(record)


def _is_alive(engine: Engine, folder: ExecutionFolder) -> bool:
    supervisor = read_supervisor(folder)
    if supervisor is not None and supervisor.is_alive:
        return True
    controller = engine.store.controller(folder.id)
    # a controller of an earlier boot may have the pid and, by chance, the start time of another process: it then waits a boot
    return controller is not None and linux.start_time(controller[0]) == controller[1]


def _remove_scratch(engine: Engine, report: Reconciled) -> None:
    for entry in list(os.scandir(engine.settings.scratch_dir)):
        try:
            folder = ExecutionFolder(engine.settings.executions_dir, entry.name)
        except SpecError:
            continue  # the templates, and the mount point
        if not _is_alive(engine, folder):
            remove_leftovers(folder, engine.settings)
            report.removed.append(f"scratch of {folder.id}")


def _release_uids(report: Reconciled) -> None:
    if os.geteuid() != 0 or not CLAIMS.is_dir():
        return
    for entry in os.scandir(CLAIMS):
        fd = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_size and not uid_in_use(int(entry.name)):
                os.ftruncate(fd, 0)
                report.removed.append(f"claim on uid {entry.name}")
        except BlockingIOError:
            pass  # its supervisor lives
        finally:
            os.close(fd)


def _remove_builds(building: Path, report: Reconciled) -> None:
    for lock in building.glob("*.lock"):
        with open(lock, "w") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for folder in building.glob(f"{lock.name.removesuffix('.lock')}.*/"):
                shutil.rmtree(folder, ignore_errors=True)
                report.removed.append(f"unfinished build {folder.name}")
