"""The entry point on a node of a cluster: one job, one execution, one supervisor.

The job's shell becomes this process, having set `FORGE_NATIVE_ID`, which names the job, and `FORGE_NODE`, which names the node. It makes the sandbox that the local executor would make there, and writes the record in the
execution's folder, which all nodes see at the same path. It stays in the scheduler's group, whose limits are its own; the execution
goes into one of Forge's on the node. The scheduler's SIGTERM is the supervisor's: the analysis gets its grace.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

import msgspec

from forge_orchestration.errors import ForgeError, SandboxError
from forge_orchestration.executions.folder import ExecutionFolder, write_atomically
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.sandbox import linux, subordinate, view
from forge_orchestration.sandbox.bubblewrap import find_bubblewrap
from forge_orchestration.sandbox.cgroups.find import CgroupSite, find_site, scope_prefix
from forge_orchestration.sandbox.entry import Entrant
from forge_orchestration.sandbox.identity import abandoned_claims, release_claim
from forge_orchestration.sandbox.plan import Bind, LaunchPlan, read_plan
from forge_orchestration.sandbox.sandboxed import SandboxSupervisor
from forge_orchestration.sandbox.scratch import forget_workspaces

NOWHERE = "/nonexistent"
_IN_SCOPE = "--in-scope"
_package_root = str(Path(__file__).resolve().parents[2])


def entry_point(python: str = "") -> tuple[str, ...]:
    """The command that is this module, on a node.

    Args:
        python: An interpreter of the node's own that has Forge; empty: this one, at the same path.
    """
    path = "" if python else f"import sys; sys.path.insert(0, {_package_root!r}); "
    return (python or sys.executable, "-I", "-c", f"{path}from forge_orchestration.sandbox.node import main; main()")


class NodeSupervisor(SandboxSupervisor):
    """A supervisor that no controller holds: it is the job."""

    @property
    def native_id(self) -> str:
        return os.environ["FORGE_NATIVE_ID"]

    @property
    def host(self) -> str:
        return os.environ.get("FORGE_NODE") or super().host


def as_it_is_here(plan: LaunchPlan, site: CgroupSite, scratch_dir: str) -> LaunchPlan:
    """The plan with this node's groups, programs, system files and device numbers.

    Raises:
        SandboxError: A file is not the one that was checked where the job was submitted.
        HostError: The node lacks something.
    """
    folders, links = view.system_view()
    return msgspec.structs.replace(
        plan, cgroup=site, bubblewrap=find_bubblewrap(), system_binds=folders, system_links=links, scratch_dir=scratch_dir,
        binds=tuple(_bind_here(bind) for bind in plan.binds),
    )  # fmt: skip


def _bind_here(bind: Bind) -> Bind:
    """A network file system has another device number on each node, and the same inodes."""
    try:
        facts = os.stat(bind.source, follow_symlinks=False)
    except OSError as error:
        raise SandboxError(
            f"{bind.source} is not on node {os.uname().nodename}: {error.strerror}.", "All nodes must see it at the same path."
        ) from error
    if facts.st_ino != bind.inode:
        raise SandboxError(
            f"{bind.source} on node {os.uname().nodename} is not the file that was checked.", "All nodes must see the same files."
        )
    return msgspec.structs.replace(bind, device=facts.st_dev)


def _remove_what_dead_jobs_left(site: CgroupSite, executions: Path) -> None:
    """Groups and claims on uids of supervisors that were killed on this node: nobody else looks here."""
    for folder in site.folders("executions")[:1]:
        for name in os.listdir(folder):
            with contextlib.suppress(ForgeError, OSError):
                execution = ExecutionFolder(executions, name)
                with execution.locked(wait=False) as nobody_is_there:
                    if nobody_is_there and execution.read_record().status.is_final:
                        group = site.group(name)
                        group.end()
                        group.remove()
    for uid in abandoned_claims():
        release_claim(uid)


def main() -> None:
    """Run the execution in the folder that is the first argument; exit status 0 if its record is final.

    The other arguments are the configured parent of cgroups, empty if there is none, and where workspaces are made.
    """
    words = sys.argv[1:]
    if words[0] == _IN_SCOPE:
        words = words[1:]
    elif prefix := scope_prefix(words[1]):
        os.execvp(prefix[0], [*prefix, *entry_point(sys.executable), _IN_SCOPE, *words])
    folder, parent, scratch_dir = words
    execution = ExecutionFolder(Path(folder).parent, Path(folder).name)
    os.chdir("/")
    try:
        plan = read_plan(execution.path)
        if os.geteuid() != 0 and (
            plan.identity.without_root == "subordinate_uid" or (plan.identity.without_root == "auto" and not subordinate.missing())
        ):
            subordinate.enter()
        site = find_site(parent)
        site.make()
        _remove_what_dead_jobs_left(site, execution.path.parent)
        os.makedirs(scratch_dir, mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            linux.unshare_mounts()
            forget_workspaces(Path(scratch_dir))
        entrant = Entrant()
        here = as_it_is_here(plan, site, scratch_dir)
        write_atomically(execution.path / "plan.json", msgspec.json.encode(here))
        ours, nobody = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, nobody:
            NodeSupervisor(here, ours, entrant).run()
    except (ForgeError, OSError) as error:
        with execution.locked():
            record = execution.read_record()
            if not record.status.is_final:
                reason = EndReason.SANDBOX_UNAVAILABLE
                said = f"Node {os.uname().nodename} cannot run it: {error}"
                execution.write_record(
                    msgspec.structs.replace(record, status=reason.status, end_reason=reason, message=said, ended_at=time.time())
                )
    sys.exit(0 if execution.read_record().status.is_final else 1)
