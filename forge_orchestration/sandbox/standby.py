"""What a supervisor has ready before it knows its execution: an identity and a workspace.

Made ahead, off the path of any execution: claiming a uid and making a file system takes longer than starting bubblewrap.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from forge_orchestration.errors import ForgeError
from forge_orchestration.model.record import Enforced
from forge_orchestration.model.sections import IdentitySettings
from forge_orchestration.sandbox import subordinate
from forge_orchestration.sandbox.identity import Claim
from forge_orchestration.sandbox.plan import LaunchPlan
from forge_orchestration.sandbox.scratch import Size, Workspace, make_workspace


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """A controller's first packet to its spawner: the configured parent group, if any, and what most executions will need.

    `contained` says that they will run in containers of an engine.
    """

    parent: str
    identity: IdentitySettings
    scratch_dir: str
    size: Size
    contained: bool = False


class Prepared:
    """An identity and a workspace of one execution; given back by `release`.

    Attributes:
        enforced: The workspace's limits, as read back.
    """

    def __init__(self, claim: Claim, workspace: Workspace) -> None:
        self.claim, self.workspace = claim, workspace
        try:
            self.enforced: dict[str, Enforced] = workspace.create(claim.identity)
        except BaseException:
            self.release(ended=True)
            raise

    def release(self, *, ended: bool) -> tuple[int, int]:
        """Remove the workspace and give back the identity, whose processes are known to have `ended` or not.

        Returns:
            Bytes freed and mounts removed.
        """
        try:
            return self.workspace.remove()
        finally:
            self.claim.release(ended=ended)


def prepare_ahead(settings: Hello) -> Prepared | None:
    """What can be had ahead; None for anyone but root, whose workspace has its execution's name, and where it fails.

    A failure here is no error: the execution tries again, and says so.
    """
    if os.geteuid() != 0 or subordinate.is_entered() or settings.contained:
        return None
    with contextlib.suppress(ForgeError, OSError):
        claim = Claim(settings.identity, f"standby {os.getpid()}")
        return Prepared(claim, make_workspace(Path(settings.scratch_dir), "", settings.size, claim.identity))
    return None


def prepare(plan: LaunchPlan, ahead: Prepared | None) -> Prepared:
    """What `plan` needs: what was made ahead, if it fits.

    Raises:
        SandboxError, OSError: It cannot be made.
    """
    size = Size(bytes=plan.limits.scratch_bytes, files=plan.limits.files)
    if ahead is not None:
        if ahead.workspace.size == size:
            ahead.claim.hand_over(plan.execution_id)
            return ahead
        ahead.release(ended=True)
        ahead.workspace.close()
    claim = Claim(plan.identity, plan.execution_id)
    seen_by_all = plan.container is not None  # by the engine
    return Prepared(claim, make_workspace(Path(plan.scratch_dir), plan.execution_id, size, claim.identity, seen_by_all=seen_by_all))
