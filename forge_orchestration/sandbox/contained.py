"""A supervisor whose command runs in a container of an engine on this host."""

from __future__ import annotations

import contextlib
import os
import select
import signal

import msgspec

from forge_orchestration.errors import SandboxError
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.record import Enforced
from forge_orchestration.sandbox import bubblewrap, view
from forge_orchestration.sandbox.cgroups.base import Cgroup
from forge_orchestration.sandbox.container import TROUBLES, Container, connect, remove_by_name, request, said
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.input_mounts import mounted_apart
from forge_orchestration.sandbox.plan import LaunchPlan
from forge_orchestration.sandbox.sandboxed import PROTECTIONS
from forge_orchestration.sandbox.scratch import Workspace
from forge_orchestration.sandbox.supervisor import KILLED, Command, Supervisor

_BY_ENGINE = {"system_calls": "on: by the engine's own profile"}
_LOOKED_AT = ("filesystem", "namespaces", "identity", "no_new_privileges", "capabilities", "system_calls")
_UNKNOWN = 255  # what engines say of an end that they have not seen
_LAST_WORDS_S = 10.0
_STOPPED = (
    "The container engine ended the container: it was stopped, or somebody told it to. Run it again; "
    'to have containers go on while the engine is stopped, set "live-restore": true in its daemon.json.'
)


class ContainerSupervisor(Supervisor):
    """One execution in a container. Its workspace is mounted where the engine sees it, in the host's own mount namespace."""

    _deaf = False  # what the container says is not heard, because it has closed its outputs or the engine is away

    def _execute(self, identity: Identity, group: Cgroup, workspace: Workspace, scratch: dict[str, Enforced]) -> None:
        group.holds_container = True
        self._announce()  # an engine may take longer than a controller waits for a word
        assert self._plan.container is not None
        engine = self._plan.container.engine
        try:
            client = connect(engine)
            image = client.inspect_image(self._plan.container.image)
        except TROUBLES as error:
            raise SandboxError(f"No container can be made: {said(error)}.", "See: forge executors list") from error
        with mounted_apart(self._plan, identity, workspace.folder / "mounts") as plan:
            self._plan = plan
            self._publisher = self._begin_checkpoints(identity, workspace)
            self._limit(identity, group, workspace, scratch, dict.fromkeys(PROTECTIONS, "on") | _BY_ENGINE)
            body = request(plan, identity, group.name, _mounts(plan, identity, workspace), image, client.api_version)
            try:
                container = Container(engine, plan.execution_id, body)
            except TROUBLES as error:
                remove_by_name(engine, plan.execution_id)  # it may have made it all the same
                raise SandboxError(f"The engine makes no container: {said(error)}.", "See: forge executors list") from error
            try:
                messages = os.open(workspace.messages, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    self._listen_to({messages: "messages"})
                    self._start(container, identity, group)
                    self._watch(container, group, workspace)
                    self._end(container, group, workspace, lambda: self._drain(container, messages))
                finally:
                    os.close(messages)
            finally:
                self._at_last(group.end)
                try:
                    container.remove()
                except SandboxError:  # it is removed when the engine is asked for the next one
                    if not self._verdict:
                        raise

    def _start(self, container: Container, identity: Identity, group: Cgroup) -> None:
        self._listen(container.output, lambda _: self._hear(container))
        try:
            container.see_as_asked()
            container.start()
        except TROUBLES as error:
            raise SandboxError(f"The engine does not start the container: {said(error)}.") from error
        if container.ended >= 0:
            self._listen(container.ended, lambda _: self._ended(container, group))
        else:
            container.note_end()  # it has been so fast
        self._enforced["open_files"] = Enforced(
            value=self._plan.limits.open_files, source="ulimits of the container, by its engine"
        )
        if not self._is_verified(container, identity, group):
            seen = dict.fromkeys(_LOOKED_AT, "on: by the engine's word, the command had ended before it was looked at")
            self._isolation = msgspec.structs.replace(self._isolation, protections=self._isolation.protections | seen)
        self._started()

    def _is_verified(self, container: Container, identity: Identity, group: Cgroup) -> bool:
        """Whether the container's first process was there to be looked at.

        Raises:
            SandboxError: It was, and is not as it should be.
        """
        if container.exit_status is not None:
            return False
        try:
            _verify(self._plan, container.pid, identity)
            self._enforced["open_files"] = bubblewrap.open_files_limit(container.pid, self._plan.limits.open_files)
        except (OSError, StopIteration):  # of one that ends there is nothing to read
            if not container.has_ended():
                raise
            return False
        try:
            bubblewrap.verify_membership(container.pid, group.membership(), beneath=True)
        except (OSError, SandboxError):  # whoever ends is taken out of its groups first
            if not container.has_ended():
                raise
            return False
        return True

    def _hear(self, container: Container) -> None:
        try:
            for source, data in container.read():
                self._take(source, data)
        except EOFError:
            self._ignore(container.output)
            self._deaf = True

    def _look(self, command: Command, group: Cgroup) -> None:
        assert isinstance(command, Container)
        if self._deaf and command.exit_status is None and command.attach_again():
            self._deaf = False
            self._listen(command.output, lambda _: self._hear(command))
            with contextlib.suppress(SandboxError):  # there is a last look at the end
                for source, data in command.missed():
                    self._take(source, data)

    def _ended(self, container: Container, group: Cgroup) -> None:
        self._ignore(container.ended)
        group.refusals()  # while the container's own group is there
        away = container.is_away()
        container.note_end(killed=self._kill_at == KILLED)
        if container.was_away and container.exit_status == _UNKNOWN:
            self._stops.setdefault(
                EndReason.EXECUTOR_ERROR, "The container engine was away and does not know how the analysis ended."
            )
        if container.signal and self._kill_at is None and container.was_killed_by_engine(away=away):
            self._stops.setdefault(EndReason.EXECUTOR_ERROR, _STOPPED)

    def _ask_to_end(self, command: Command, group: Cgroup) -> None:
        assert isinstance(command, Container)
        # its first process is the engine's, which would end all at once
        group.signal_members(signal.SIGTERM, spared=(command.pid,))

    def _drain(self, container: Container, messages: int) -> None:
        with contextlib.suppress(EOFError, OSError):
            while select.select([container.output], [], [], _LAST_WORDS_S)[0]:
                for source, data in container.read():
                    self._take(source, data)
        if container.was_away:
            with contextlib.suppress(SandboxError):  # what has ended has ended; its log lacks what was said meanwhile
                for source, data in container.missed():
                    self._take(source, data)
        while self._read("messages", messages):
            pass

    def _violations(self) -> dict[str, object]:
        return {"violations": "not counted: the filter is the engine's, and tells nobody"}


def _mounts(plan: LaunchPlan, identity: Identity, workspace: Workspace) -> list[tuple[str, str, bool]]:
    """Host path, path inside, and whether it is read-only: of everything that the container gets."""
    made = workspace.folder / "files"
    made.mkdir(mode=0o755)
    small = {
        view.PARAMS: plan.parameters_json, view.README: view.README_TEXT, "/etc/hosts": view.HOSTS, "/etc/nsswitch.conf": view.NSSWITCH, "/etc/resolv.conf": "",
        "/etc/passwd": view.passwd(identity.uid, identity.gid), "/etc/group": view.group(identity.gid),
    }  # fmt: skip
    mounts = []
    for number, (target, text) in enumerate(small.items()):
        path = made / str(number)
        path.write_text(text)
        path.chmod(0o444)
        mounts.append((os.fspath(path), target, True))
    mounts += [(bind.source, bind.target, True) for bind in plan.binds]
    mounts += [(os.fspath(workspace.folder / name), target, False) for name, target in view.WORKSPACE.items()]
    return [*mounts, (os.fspath(workspace.messages), view.MESSAGES, False)]


def _verify(plan: LaunchPlan, pid: int, identity: Identity) -> None:
    """Compare the container's first process, seen from outside, with what was asked for.

    Raises:
        SandboxError: Something is not as the plan says; nothing goes on then.
    """
    # an engine mounts anew, without `nosuid`, which `no_new_privs` stands for, and `nodev`, for which the group's list of devices does
    bubblewrap.verify_binds(plan, pid, ("ro",))
    bubblewrap.verify_namespaces(pid, "cgroup")
    bubblewrap.verify_privileges(identity, pid)
