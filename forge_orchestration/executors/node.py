"""The entry point on a node of a cluster: one job, one execution, one supervisor.

The job's shell becomes this process, having set `FORGE_NATIVE_ID`, which names the job, and `FORGE_NODE`, which names the node. It makes
the sandbox that the local executor would make there, and writes the record in the execution's folder, which all nodes see at the same
path. It stays in the scheduler's group, whose limits are its own; the execution goes into one of Forge's on the node. The scheduler's
SIGTERM is the supervisor's: the analysis gets its grace.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

import msgspec

from forge_orchestration.errors import ForgeError, HostError, SandboxError
from forge_orchestration.executions import forge_checkpoint
from forge_orchestration.executions.folder import ExecutionFolder, is_execution_id, write_atomically
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.sandbox import linux, subordinate, view
from forge_orchestration.sandbox.bubblewrap import find_bubblewrap
from forge_orchestration.sandbox.cgroups.base import Cgroup
from forge_orchestration.sandbox.cgroups.find import CgroupSite, find_site, scope_prefix
from forge_orchestration.sandbox.entry import Entrant
from forge_orchestration.sandbox.identity import abandoned_claims, release_claim
from forge_orchestration.sandbox.plan import Bind, LaunchPlan, read_plan
from forge_orchestration.sandbox.sandboxed import SandboxSupervisor
from forge_orchestration.sandbox.scratch import forget_workspaces, remove_tree
from forge_orchestration.sandbox.supervisor import Command

NOWHERE = "/nonexistent"
CANCELED = "job.canceled"
"""A file in the execution's folder: somebody has asked for its end."""
_IN_SCOPE = "--in-scope"
_ASKED_BY_SLURM = "Slurm asked it to end."
_LOOK_S = 2.0
_SYSTEM_S = 60.0
_package_root = str(Path(__file__).resolve().parents[2])


def entry_point(python: str = "") -> tuple[str, ...]:
    """The command that is this module, on a node.

    Args:
        python: An interpreter of the node's own that has Forge; empty: this one, at the same path.
    """
    path = "" if python else f"import sys; sys.path.insert(0, {_package_root!r}); "
    return (python or sys.executable, "-I", "-c", f"{path}from forge_orchestration.executors.node import main; main()")


class NodeSupervisor(SandboxSupervisor):
    """A supervisor that no controller holds: it is the job."""

    def __init__(self, plan: LaunchPlan, nobody: socket.socket, entrant: Entrant, why_not_reused: str) -> None:
        super().__init__(plan, nobody, entrant)
        self._next_mark = 0.0
        if why_not_reused:
            cache = self._record.cache
            why = f"{cache.why} {why_not_reused}".strip()
            self._record = msgspec.structs.replace(self._record, cache=msgspec.structs.replace(cache, why=why, reusable=False))

    @property
    def native_id(self) -> str:
        return os.environ["FORGE_NATIVE_ID"]

    @property
    def host(self) -> str:
        return os.environ.get("FORGE_NODE") or super().host

    def run(self) -> None:
        record = self._record
        if record.native_id not in (None, self.native_id) or (record.status is not Status.QUEUED and not record.status.is_final):
            return  # another job has it, or had: nothing is run twice
        if self._is_canceled() and not record.status.is_final:
            _close(self._folder, record, EndReason.CANCELED, "Canceled before it began.")
            return
        write_atomically(self._folder.path / "plan.json", msgspec.json.encode(self._plan))
        super().run()

    def _is_canceled(self) -> bool:
        return (self._folder.path / CANCELED).exists()

    def _look(self, command: Command, group: Cgroup) -> None:
        super()._look(command, group)
        if time.monotonic() >= self._next_mark:  # where a signal did not get through
            self._next_mark = time.monotonic() + _LOOK_S
            if self._is_canceled():
                self._stop(EndReason.CANCELED, "Canceled.", command, group)

    def _canceled(self, command: Command, group: Cgroup) -> None:
        os.read(self._wake_fd, 512)
        said = "Canceled." if self._is_canceled() else _ASKED_BY_SLURM
        self._stop(EndReason.CANCELED, said, command, group)


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
    """A network file system has another device number on each node, and the same inodes. What analyses may import is this Forge's own."""
    if bind.target.startswith(f"{view.LIB}/"):
        path = Path(forge_checkpoint.__file__).with_name(bind.target.rpartition("/")[2])
        own = os.stat(path)
        return msgspec.structs.replace(bind, source=str(path), device=own.st_dev, inode=own.st_ino)
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


class _NoDigests:
    """No digest of an earlier look: nodes do not write to the store."""

    def digest(self, facts: os.stat_result) -> str | None:
        return None

    def keep_digest(self, facts: os.stat_result, sha256: str) -> None:
        return None


def _why_not_reused(record: ExecutionRecord, cache_dir: Path) -> str:
    """That the node shows other system files than the host whose were taken for the fingerprint; empty if they are the same."""
    wanted = record.fingerprint_parts.get("system", "")
    if not wanted or record.cache.policy == "off":
        return ""
    from forge_orchestration.resume.system_view import system_digest  # only what has a fingerprint waits for it

    own = cache_dir / "nodes" / os.uname().nodename
    if system_digest(own, _NoDigests(), _SYSTEM_S) == wanted:
        return ""
    return f"Node {os.uname().nodename} has other system files than the host where it was submitted: its result is not reused."


def _remove_what_dead_jobs_left(site: CgroupSite, executions: Path, scratch_dir: Path) -> None:
    """Groups, folders and claims on uids of supervisors that were killed on this node: nobody else looks here."""
    there = {name for folder in (*site.folders("executions")[:1], scratch_dir) for name in os.listdir(folder)}
    for name in filter(is_execution_id, there):
        with contextlib.suppress(ForgeError, OSError):
            execution = ExecutionFolder(executions, name)
            with execution.locked(wait=False) as nobody_is_there:
                if nobody_is_there and execution.read_record().status.is_final:
                    group = site.group(name)
                    group.end()
                    group.remove()
                    remove_tree(scratch_dir / name, subordinate.prefix())
    for uid in abandoned_claims():
        release_claim(uid)


def _check_scratch(scratch_dir: Path) -> None:
    """See that images are made, and mounted, where nobody else can put any.

    Raises:
        HostError: Somebody else could.
    """
    scratch_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = os.stat(scratch_dir)
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise HostError(
            f"{scratch_dir} on node {os.uname().nodename} belongs to, or can be written by, another user.",
            "Set scratch_dir under [slurm] in settings.toml to a folder of your own.",
        )


def _close(execution: ExecutionFolder, record: ExecutionRecord, reason: EndReason, said: str) -> None:
    execution.write_record(
        msgspec.structs.replace(record, status=reason.status, end_reason=reason, message=said, ended_at=time.time())
    )


def _run(execution: ExecutionFolder, parent: str, scratch_dir: Path, cache_dir: Path, *, in_scope: bool) -> None:
    record = execution.read_record()
    if record.native_id not in (None, os.environ["FORGE_NATIVE_ID"]):
        return  # another job has it: to wait for its lock would hold what this one was given
    plan = read_plan(execution.path)
    site = find_site(parent)
    if in_scope:
        site.enter()  # a group that has processes can limit none of its children
    else:
        site.make()
    subordinate.enter_if_wanted(plan.identity)
    _check_scratch(scratch_dir)
    _remove_what_dead_jobs_left(site, execution.path.parent, scratch_dir)
    why = _why_not_reused(record, cache_dir)
    if os.geteuid() == 0:
        linux.unshare_mounts()
        forget_workspaces(scratch_dir)
    entrant = Entrant()
    ours, nobody = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, nobody:
        NodeSupervisor(as_it_is_here(plan, site, str(scratch_dir)), ours, entrant, why).run()


def main() -> None:
    """Run the execution in the folder that is the first argument; exit status 0 if its record is final.

    The other arguments are the configured parent of cgroups, empty if there is none, where workspaces are made, and where it is kept
    what can be had again.
    """
    in_scope = sys.argv[1] == _IN_SCOPE
    words = sys.argv[2:] if in_scope else sys.argv[1:]
    folder, parent, scratch_dir, cache_dir = words
    execution = ExecutionFolder(Path(folder).parent, Path(folder).name)
    os.chdir("/")
    try:
        if not in_scope and (prefix := scope_prefix(parent)):
            os.environ.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
            os.execvp(prefix[0], [*prefix, *entry_point(), _IN_SCOPE, *words])
        _run(execution, parent, Path(scratch_dir), Path(cache_dir), in_scope=in_scope)
    except (ForgeError, OSError) as error:
        with execution.locked():
            record = execution.read_record()
            if not record.status.is_final:
                _close(execution, record, EndReason.SANDBOX_UNAVAILABLE, f"Node {os.uname().nodename} cannot run it: {error}")
    sys.exit(0 if execution.read_record().status.is_final else 1)
