"""What a killed supervisor leaves, and its removal: processes and groups, and an ordinary user's scratch folder."""

from __future__ import annotations

import contextlib
import time

from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.record import Cleanup
from forge_orchestration.sandbox.plan import read_plan
from forge_orchestration.sandbox.scratch import folder_bytes, remove_tree
from forge_orchestration.settings import Settings


def remove_leftovers(folder: ExecutionFolder, settings: Settings) -> Cleanup:
    """Remove what is left of one execution whose supervisor is gone. Idempotent.

    Mounts and scratch images are not among it: they were the supervisor's own and ended with it.

    Raises:
        SandboxError: Processes of it do not end.
    """
    killed, removed = 0, True
    with contextlib.suppress(FileNotFoundError):
        group = read_plan(folder.path).cgroup.group(folder.id)
        killed, removed = group.end(), group.remove()
    freed = 0
    workspace = settings.scratch_dir / folder.id
    if workspace.exists():
        freed += folder_bytes(workspace)
        remove_tree(workspace)
    return Cleanup(scratch_bytes_freed=freed, processes_killed=killed, cgroup_removed=removed, finished_at=time.time())
