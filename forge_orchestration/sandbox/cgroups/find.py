"""Which cgroup version this host has, and where Forge may make groups of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from pathlib import Path

import msgspec

from forge_orchestration.errors import HostError
from forge_orchestration.model.compiled import compiled
from forge_orchestration.sandbox.cgroups import v1, v2
from forge_orchestration.sandbox.cgroups.base import Cgroup, read, write
from forge_orchestration.sandbox.cgroups.mounts import cgroup_mounts

REMEDY = "Prepare a group once with: sudo deploy/delegate-cgroup $USER"
SLICE = "forge.slice"  # holds the scopes of all controllers, and so the sum of their executions
_CONTROLLERS = "/controllers"  # the leaf for what a delegated service runs beside executions
_LEAF = re.compile(rf"(/supervisors|{_CONTROLLERS}|/workers/[^/]+)\Z")
"""In a delegated service's group: where one of our processes may be."""
_SYSTEMD_SCOPE = ("--scope", "--quiet", "--collect", f"--slice={SLICE}", "--property=Delegate=yes", "--")


class CgroupSite(msgspec.Struct, frozen=True, kw_only=True):
    """Where the groups of executions are made.

    Attributes:
        version: 1 or 2.
        mounts: Mount point by controller; on v2 the one mount under the name `unified`.
        parent: Name of the group that is ours, relative to each mount.
    """

    version: int
    mounts: dict[str, str]
    parent: str

    def group(self, execution_id: str) -> Cgroup:
        """The group of one execution; it need not exist."""
        return self._named(f"executions/{execution_id}")

    def worker(self, run_id: str) -> Cgroup:
        """The group of the process that executes a Dagster run; it need not exist."""
        return self._named(f"workers/{run_id}")

    def _named(self, group: str) -> Cgroup:
        name = f"{self.parent}/{group}"
        if self.version == 1:
            return v1.CgroupV1({controller: Path(mount) for controller, mount in self.mounts.items()}, name)
        return v2.CgroupV2(Path(self.mounts["unified"]), name)

    def folders(self, name: str) -> list[Path]:
        """The folders of `parent/name`, one a mount."""
        return list(dict.fromkeys(Path(mount, self.parent, name) for mount in self.mounts.values()))

    def enter(self, holding: str = "executions") -> None:
        """Make the groups of ours and move this process, with the supervisors it will fork, into a leaf beside them.

        A supervisor that shared a group with its execution would be killed with it, and could not tell why.

        Args:
            holding: The group that is to hold one for each execution, or for each worker.

        Raises:
            HostError: The groups cannot be made.
        """
        try:
            for leaf in self.folders("supervisors"):
                leaf.mkdir(parents=True, exist_ok=True)
                write(leaf / (v1.JOIN_FILE if self.version == 1 else v2.JOIN_FILE), "0")
            if delegated_service() == f"/{self.parent}":
                _make_room(Path(self.mounts["unified"], self.parent))
        except OSError as error:
            raise _not_made(error) from error
        self.make(holding)

    def make(self, holding: str = "executions") -> None:
        """Make the groups of ours, and leave this process where it is.

        Raises:
            HostError: The groups cannot be made.
        """
        try:
            for folder in self.folders(holding):
                folder.mkdir(parents=True, exist_ok=True)
            if self.version == 2:
                unified = Path(self.mounts["unified"])
                for folder in (unified / self.parent, unified / self.parent / holding):
                    v2.delegate_controllers(folder)
        except OSError as error:
            raise _not_made(error) from error


@compiled
class Greeting(msgspec.Struct, frozen=True):
    """The spawner's first packet: where executions get their groups, or what the host lacks."""

    site: CgroupSite | None = None
    error: str = ""
    hint: str = ""


def _not_made(error: OSError) -> HostError:
    return HostError(f"No cgroup of Forge's own can be made at {error.filename}: {error.strerror}.", REMEDY)


def find_site(configured_parent: str = "") -> CgroupSite:
    """Where this process can make groups; call it inside what `scope_prefix` asked for.

    Raises:
        HostError: There is no place; the sentence says what is missing and how to get it.
    """
    legacy, unified = cgroup_mounts()
    if all(controller in legacy for controller in v1.CONTROLLERS):
        parent = configured_parent or _own_name()
        site = CgroupSite(version=1, mounts={name: legacy[name] for name in v1.CONTROLLERS}, parent=parent)
        return _writable(site)
    if unified is None or not _has_controllers(Path(unified)):
        raise HostError("This host has no cgroup with the controllers memory, cpu and pids.", "Mount cgroup v2.")
    if configured_parent:
        parent = configured_parent
    elif delegated := delegated_service():
        parent = delegated.lstrip("/")
    elif scope_prefix():
        parent = _own_v2_group().lstrip("/")
    else:
        parent = _own_name()
    return _writable(CgroupSite(version=2, mounts={"unified": unified}, parent=parent))


def scope_prefix(configured_parent: str = "") -> tuple[str, ...]:
    """The command that starts a program in a delegated systemd scope, where that is this host's way; else nothing."""
    legacy, unified = cgroup_mounts()
    v1_complete = all(controller in legacy for controller in v1.CONTROLLERS)
    if configured_parent or v1_complete or unified is None or not os.path.isdir("/run/systemd/system") or delegated_service():
        return ()
    return ("systemd-run", *(() if os.geteuid() == 0 else ("--user",)), *_SYSTEMD_SCOPE)


def expected_site(configured_parent: str = "") -> CgroupSite:
    """Where `find_site` finds groups, without a scope being started; under systemd the scope has no name yet.

    Raises:
        HostError: As `find_site`.
    """
    if not scope_prefix(configured_parent):
        return find_site(configured_parent)
    user = os.geteuid()
    above = f"user.slice/user-{user}.slice/user@{user}.service/" if user else ""
    return CgroupSite(version=2, mounts={"unified": cgroup_mounts()[1] or ""}, parent=f"{above}{SLICE}/any.scope")


def shared_group(configured_parent: str = "") -> str:
    """The name of the group that holds the executions of all controllers with this setting: what a sum is a sum of."""
    if scope_prefix(configured_parent):
        return SLICE
    return configured_parent or delegated_service().lstrip("/") or _own_name()


def delegated_service() -> str:
    """The v2 group of the system service that this process is part of, if systemd delegated it to its user; else nothing.

    A process of a user's own session, and root, get a scope of their own instead.
    """
    _, unified = cgroup_mounts()
    user = os.geteuid()
    if user == 0 or unified is None or not _has_controllers(Path(unified)):
        return ""
    group = _LEAF.sub("", _own_v2_group())
    folder = f"{unified}{group}"
    try:
        delegated = os.getxattr(folder, "user.delegate") == b"1" and os.access(f"{folder}/cgroup.procs", os.W_OK)
    except OSError:
        return ""
    return group if delegated and f"/user@{user}.service" not in group else ""


def _make_room(service: Path) -> None:
    """Move the service's processes into a leaf: a group that has any can limit none of its children."""
    leaf = service / _CONTROLLERS.lstrip("/")
    leaf.mkdir(exist_ok=True)
    for _ in range(100):  # they may be forking
        there = read(service / "cgroup.procs").split()
        if not there:
            return
        for pid in there:
            with contextlib.suppress(ProcessLookupError):
                write(leaf / "cgroup.procs", pid)


def _own_name() -> str:
    """`forge` for root; for a user, the group that `deploy/delegate-cgroup` makes."""
    if os.geteuid() == 0:
        return "forge"
    try:
        return f"forge-{pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"forge-{os.geteuid()}"


def _own_v2_group() -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:]
    raise HostError("This process is in no cgroup v2.", "Mount cgroup v2.")


def _has_controllers(mount: Path) -> bool:
    try:
        return set(v2.CONTROLLERS) <= set(read(mount / "cgroup.controllers").split())
    except OSError:
        return False


def _writable(site: CgroupSite) -> CgroupSite:
    for mount in dict.fromkeys(site.mounts.values()):
        folder = Path(mount, site.parent)
        probe = folder if folder.is_dir() else Path(mount)
        if not os.access(probe, os.W_OK):
            raise HostError(f"No cgroup can be made in {folder}: it cannot be written.", REMEDY)
    return site
