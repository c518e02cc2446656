"""What a killed supervisor leaves, and its removal: processes and groups, a scratch image or folder, a FIFO."""

from __future__ import annotations

import contextlib
import os
import time

import msgspec

from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.record import Cleanup
from forge_orchestration.sandbox.plan import LaunchPlan
from forge_orchestration.sandbox.scratch import folder_bytes, remove_tree
from forge_orchestration.settings import Settings


def remove_leftovers(folder: ExecutionFolder, settings: Settings) -> Cleanup:
    """Remove what is left of one execution whose supervisor is gone. Idempotent.

    Mounts are not among it: they were made in the supervisor's own mount namespace and ended with it.

    Raises:
        SandboxError: Processes of it do not end.
    """
    killed, removed = 0, True
    with contextlib.suppress(FileNotFoundError):
        plan = msgspec.json.decode((folder.path / "plan.json").read_bytes(), type=LaunchPlan)
        group = plan.cgroup.group(folder.id)
        killed, removed = group.end(), group.remove()
    freed = 0
    workspace = settings.scratch_dir / folder.id
    image = workspace.with_name(workspace.name + ".img")
    with contextlib.suppress(FileNotFoundError):
        freed += os.stat(image).st_blocks * 512
        image.unlink()
    if workspace.exists():
        freed += folder_bytes(workspace)
        remove_tree(workspace)
    (folder.path / "messages.fifo").unlink(missing_ok=True)
    return Cleanup(scratch_bytes_freed=freed, processes_killed=killed, cgroup_removed=removed, finished_at=time.time())
