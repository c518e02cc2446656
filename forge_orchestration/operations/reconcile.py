"""Putting things right after a crash: every record final, and nothing of a dead execution left on the host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError, HostError
from forge_orchestration.executions import publication
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.snapshots import remove_unused
from forge_orchestration.executors.recovery import Reconciled, Recovery, one_at_a_time, somebody_is_there
from forge_orchestration.operations.retention import remove_torn
from forge_orchestration.operations.workers import remove_groups
from forge_orchestration.runtimes.building import remove_leftovers
from forge_orchestration.sandbox.cgroups.find import find_site
from forge_orchestration.sandbox.scratch import UNFINISHED
from forge_orchestration.settings import Settings

_FORMATTED_WITHIN_S = 600.0


def reconcile(engine: Engine) -> Reconciled:
    """Close executions whose supervisor and controller are gone, and remove what they left. Idempotent.

    What other deployments (another `FORGE_HOME`) do on this host is left alone; only claims on uids that their dead
    supervisors hold, and as which nobody runs, are given back for them.
    """
    settings, store = engine.settings, engine.store
    site = None
    with contextlib.suppress(HostError):  # then there are no groups either
        site = find_site(settings.cgroup.parent)
    recovery = Recovery(store, settings, site)
    report = recovery.report
    with one_at_a_time(settings, wait=True):
        # before the folders: an execution that begins meanwhile has a folder without being known, never the reverse
        known, unfinished = store.ids(), set(store.unfinished())
        on_disk = {entry.name for entry in os.scandir(settings.executions_dir) if entry.is_dir(follow_symlinks=False)}
        unknown = {name for name in on_disk - known if not recovery.is_alive(name)}
        recovery.recover(recovery.find() | unknown)
        for execution_id in known - on_disk - unfinished:
            store.forget(execution_id)  # someone removed its folder
            report.removed.append(f"row of {execution_id}, whose folder is gone")
        recovery.remove_nameless()
        recovery.look_elsewhere()
        report.removed += remove_torn(settings)
        if site is not None:
            runs, problems = remove_groups(site, settings.workers_dir)
            report.removed += [f"group of the worker of run {run_id}" for run_id in runs]
            report.problems += problems
        _remove_builds(settings, report)
        _remove_images(settings.scratch_dir, report)
        report.removed += [f"snapshot {digest[:12]}, which no execution has" for digest in remove_unused(settings)]
    _publish(engine, report)
    return report


def _publish(engine: Engine, report: Reconciled) -> None:
    """What executions have made whose controllers were killed before it was published, or whose database did not answer."""
    for execution_id in publication.marked(engine.settings):
        try:
            folder = ExecutionFolder(engine.settings.executions_dir, execution_id)
            if not folder.path.exists():
                publication.unmark(execution_id, engine.settings)
                continue
            record = folder.read_record()
            hopeless = any(not one.transient for one in record.unpublished)  # for people to look at
            if not record.status.is_final or hopeless or somebody_is_there(folder, engine.store):
                continue
            record = engine.publish_pending(record, patient=False)
        except ForgeError as error:
            report.problems.append(f"{execution_id}: {error}")
            continue
        report.published += [f"{one.target} of {execution_id}" for one in record.published if one.at is not None]
        report.problems += [f"{execution_id}: {one.error}" for one in record.unpublished]


def _remove_builds(settings: Settings, report: Reconciled) -> None:
    for lock in (settings.runtimes_dir / ".building").glob("*.lock"):
        with open(lock, "w") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = remove_leftovers(lock.name.removesuffix(".lock"), settings)
            report.removed += [f"unfinished build {name}" for name in left]


def _remove_images(scratch: Path, report: Reconciled) -> None:
    """What killed supervisors left of images that they were formatting, which takes no longer than a few minutes."""
    for image in (*scratch.glob(f"*{UNFINISHED}"), *scratch.glob(f"templates/*{UNFINISHED}")):
        with contextlib.suppress(FileNotFoundError):
            if image.stat().st_mtime < time.time() - _FORMATTED_WITHIN_S:
                image.unlink()
                report.removed.append(f"unfinished image {image.name}")
