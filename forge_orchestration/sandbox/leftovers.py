"""What a killed supervisor leaves, its removal, and the end of the record in the supervisor's place.

Left are processes and groups, an ordinary user's scratch folder, a claim on a uid, files half-written; of one in a container that, and
the mounts of its workspace, which the engine had to see. Of a sandbox on this host mounts and scratch images were the supervisor's own and
ended with it.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import msgspec

from forge_orchestration.errors import SandboxError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.outputs import kept_outputs
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.record import CheckpointFacts, Cleanup, ExecutionRecord
from forge_orchestration.sandbox import linux, subordinate
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.checkpoints import latest, made_by, remove_unfinished
from forge_orchestration.sandbox.identity import claims, release_claim
from forge_orchestration.sandbox.orphans import end_orphans
from forge_orchestration.sandbox.plan import LaunchPlan, read_plan
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration.sandbox.scratch import folder_bytes, remove_tree
from forge_orchestration.settings import Settings

_EXIT_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 10.0


def close_in_its_place(
    folder: ExecutionFolder, settings: Settings, reason: EndReason, message: str, site: CgroupSite | None = None
) -> ExecutionRecord:
    """Bring an execution whose supervisor is gone to its end: nothing of it is left, and its record is final. Idempotent.

    Only for who holds its lock: a supervisor that starts only now then finds a final record, and does nothing.
    A record that is final already stays as it is, but for what was cleaned up: its supervisor was killed after the end.

    Raises:
        SandboxError: Something of it cannot be ended or removed; the record is as it was.
        SpecError, StoreError: There is no record, or it cannot be read.
    """
    supervisor = read_supervisor(folder)
    if supervisor is not None and not supervisor.wait(_EXIT_TIMEOUT_S):
        raise SandboxError(f"Supervisor {supervisor.pid} of {folder.id} does not end.", "It may hang in the kernel.")
    record = folder.read_record()
    cleanup = remove_leftovers(folder, settings, site)
    if not record.status.is_final:
        plan = _plan(folder)
        record = msgspec.structs.replace(
            record, status=reason.status, end_reason=reason, message=message, cleanup=cleanup, ended_at=time.time(),
            outputs=kept_outputs(folder.outputs, plan.outputs if plan else {}), checkpoint=_checkpoint(record, plan),
        )  # fmt: skip
    elif record.cleanup.finished_at is None:
        record = msgspec.structs.replace(record, cleanup=cleanup)
    else:
        return record
    folder.write_record(record)
    return record


def remove_leftovers(folder: ExecutionFolder, settings: Settings, site: CgroupSite | None = None) -> Cleanup:
    """Remove what is left of one execution whose supervisor is gone; only for who holds its lock. Idempotent.

    Args:
        site: Where its group would be, if its own plan does not say.

    Raises:
        SandboxError: Processes of it do not end.
    """
    killed, removed = 0, True
    plan = _plan(folder)
    if (there := plan.cgroup if plan else site) is not None:
        group = there.group(folder.id)
        killed = end_orphans(there) + group.end()
        if plan is not None and plan.container is not None:
            from forge_orchestration.sandbox.container import remove_by_name

            # of an engine that is away the next check asks again; nothing of it runs any more
            with contextlib.suppress(SandboxError):
                remove_by_name(plan.container.engine, folder.id)
            group.holds_container = True
        removed = group.remove()
    freed = 0
    workspace = settings.scratch_dir / folder.id
    if workspace.exists():
        linux.unmount_beneath(workspace)
        whose = subordinate.prefix()
        freed += folder_bytes(workspace, whose)
        remove_tree(workspace, whose)
    folder.remove_torn()
    for uid, holder in claims().items():
        if holder == folder.id:
            _release(uid, folder.id)
    return Cleanup(scratch_bytes_freed=freed, processes_killed=killed, cgroup_removed=removed, finished_at=time.time())


def _checkpoint(record: ExecutionRecord, plan: LaunchPlan | None) -> CheckpointFacts | None:
    """What it had published until its supervisor was gone is there for the next."""
    if plan is None or plan.checkpoint is None:
        return record.checkpoint
    place = Path(plan.checkpoint.folder)
    remove_unfinished(place, record.execution_id)
    kept = made_by(latest(place)) == record.execution_id
    return msgspec.structs.replace(record.checkpoint or CheckpointFacts(), kept=kept)


def _release(uid: int, execution_id: str) -> None:
    deadline = time.monotonic() + _END_TIMEOUT_S
    # a process leaves its group a moment before its end; and a reconciliation beside this one may be first
    while not release_claim(uid) and claims().get(uid) == execution_id:
        if time.monotonic() > deadline:
            raise SandboxError(
                f"Something still runs as uid {uid}, which {execution_id} has claimed.", "It may hang in the kernel."
            )
        time.sleep(0.002)


def _plan(folder: ExecutionFolder) -> LaunchPlan | None:
    """How it was to be started; None if it never came to that, or if what is there was torn by the end of the host."""
    try:
        return read_plan(folder.path)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
