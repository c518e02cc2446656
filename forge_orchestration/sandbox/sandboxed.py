"""A supervisor whose command runs in a sandbox that bubblewrap makes on this host."""

from __future__ import annotations

import os
import socket

from forge_orchestration.errors import SandboxError
from forge_orchestration.model.record import Enforced
from forge_orchestration.sandbox import bubblewrap, precedence
from forge_orchestration.sandbox.cgroups.base import Cgroup
from forge_orchestration.sandbox.child import Child, start_child
from forge_orchestration.sandbox.entry import Entrant
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.input_mounts import mounted_inputs
from forge_orchestration.sandbox.plan import LaunchPlan
from forge_orchestration.sandbox.scratch import FolderWorkspace, Workspace
from forge_orchestration.sandbox.standby import Prepared
from forge_orchestration.sandbox.supervisor import Command, Supervisor
from forge_orchestration.sandbox.violations import Violations

PROTECTIONS = (
    "filesystem", "namespaces", "network", "identity", "no_new_privileges", "capabilities", "system_calls",
    "memory_limit", "cpu_limit", "pids_limit", "open_files_limit", "wall_time_limit", "log_limit", "keyring",
)  # fmt: skip


class SandboxSupervisor(Supervisor):
    """One execution in a sandbox of bubblewrap's. Started by root, this process has a mount namespace of its own."""

    def __init__(self, plan: LaunchPlan, controller: socket.socket, entrant: Entrant, ahead: Prepared | None = None) -> None:
        super().__init__(plan, controller, ahead)
        self._entrant = entrant
        self._refusals: Violations | None = None

    def _execute(self, identity: Identity, group: Cgroup, workspace: Workspace, scratch: dict[str, Enforced]) -> None:
        with mounted_inputs(self._plan, identity, workspace.folder) as self._plan:
            plan = self._plan
            self._publisher = self._begin_checkpoints(identity, workspace)
            place, messages = os.fspath(workspace.folder), os.fspath(workspace.messages)
            limited = isinstance(workspace, FolderWorkspace)
            with start_child(plan, identity, group, self._entrant, place, messages, limit_file_size=limited) as child:
                # while bubblewrap is at work
                if not self._announced:
                    self._announce()
                self._limit(identity, group, workspace, scratch, dict.fromkeys(PROTECTIONS, "on"))
                try:
                    self._hear(child, identity, group)
                    self._watch(child, group, workspace)
                except (SandboxError, OSError) as error:
                    raise child.given_up_or(error) from error
                self._end(child, group, workspace, lambda: self._drain(child))

    def _hear(self, child: Child, identity: Identity, group: Cgroup) -> None:
        """Listen to the command, to bubblewrap, and to the process that becomes the command."""
        channel, standing = child.channel.fileno(), child.standing.fileno()

        def stands(_: int) -> None:
            self._ignore(standing)
            child.enter()
            bubblewrap.verify_tree(self._plan, child.inner_pid)  # while the command-to-be goes in

        def has_said(_: int) -> None:
            filter_fd = child.hear()
            if filter_fd is not None:
                self._refusals = Violations(filter_fd)
                self._listen(filter_fd, lambda _: self._answer())
                self._release(child, identity, group)

        def keeper_ended(_: int) -> None:
            self._ignore(child.keeper)
            if error := child.reap_keeper():
                raise error

        self._listen_to({child.stdout: "stdout", child.stderr: "stderr", child.messages: "messages"})
        self._listen(child.keeper, keeper_ended)
        self._listen(channel, has_said)
        self._listen(standing, stands, 0)  # only its end is of interest, and that is always told

    def _release(self, child: Child, identity: Identity, group: Cgroup) -> None:
        """The command-to-be waits: look at it, and let it go."""
        bubblewrap.verify_command(identity, child.main_pid, child.inner_pid, group.membership())
        self._enforced["open_files"] = bubblewrap.open_files_limit(child.main_pid, self._plan.limits.open_files)
        self._enforced |= precedence.read_back(child.main_pid, self._plan.neighbours)
        child.release()
        self._started()

    def _look(self, command: Command, group: Cgroup) -> None:
        if self._refusals is not None and self._refusals.is_flood:
            self._answer()

    def _answer(self) -> None:
        """To calls that were refused."""
        refusals = self._refusals
        assert refusals is not None
        more = refusals.answer()
        if not more or refusals.is_flood:
            self._ignore(refusals.listener)

    def _violations(self) -> dict[str, object]:
        refusals = self._refusals
        suspect = refusals is not None and refusals.total >= self._plan.supervision.suspect_after
        return {"violations": refusals.counts if refusals else {}, "suspect": suspect}

    def _drain(self, child: Child) -> None:
        """What is still in the pipes, whose other ends are all closed."""
        for fd, source in ((child.stdout, "stdout"), (child.stderr, "stderr"), (child.messages, "messages")):
            while self._read(source, fd):
                pass
