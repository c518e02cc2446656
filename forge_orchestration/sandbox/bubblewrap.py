"""From a launch plan to bubblewrap's command line, and the look at what stands before the command's first instruction.

bubblewrap makes the namespaces and the mount tree, and keeps them; the command is started in them by `entry`. When the process
that is to become the command has given up its privileges and waits, it is looked at from outside, through `/proc`: mounts,
namespaces, groups, identity, capabilities and filter are compared with the plan.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from forge_orchestration.errors import HostError, SandboxError
from forge_orchestration.model.record import Enforced
from forge_orchestration.sandbox import view
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.plan import LaunchPlan

_MADE_BY_BUBBLEWRAP = ("mnt", "pid", "ipc", "uts", "net")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
# who opens those of pressure may leave triggers in the kernel, each of which takes its time to remove
MASKED = ("/proc/keys", "/proc/key-users", *(f"/proc/pressure/{what}" for what in ("cpu", "io", "irq", "memory")))


def find_bubblewrap() -> str:
    """The path of `bwrap`.

    Raises:
        HostError: It is not installed.
    """
    import shutil  # no spawner needs it

    path = shutil.which("bwrap")
    if path is None:
        raise HostError("bubblewrap (bwrap) is not installed.", "Install it: sudo apt-get install bubblewrap")
    return os.path.realpath(path)


def arguments(
    plan: LaunchPlan, identity: Identity, *, workspace: str, messages: str, files: dict[str, int], status_fd: int, block_fd: int
) -> list[str]:
    """Bubblewrap's whole command line, but for the program that it is to start.

    Args:
        workspace: Where the execution's workspace lies on the host.
        messages: The FIFO that becomes `/forge/messages`.
        files: Descriptor by path of the small files that are made for this sandbox.
        block_fd: Read once and closed when all mounts are made and all privileges given up.
    """
    argv = [plan.bubblewrap, "--clearenv"]
    argv += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--hostname", "forge"]
    argv += ["--die-with-parent"]  # tied to the supervisor, which is single-threaded: a dead one leaves nothing running
    argv += ["--new-session", "--cap-drop", "ALL"]
    if not identity.is_own:
        argv += ["--unshare-user", "--uid", str(identity.uid), "--gid", str(identity.gid)]
    argv += _system(plan)
    for path, fd in files.items():
        # a file of the root itself, which is made read-only below, costs less than a mount
        argv += ["--perms", "0444", "--file", str(fd), path]
    argv += _forge_paths(plan, workspace, messages)
    # what bubblewrap made of the root itself is not writable either
    argv += ["--remount-ro", "/", "--chdir", "/"]
    return [*argv, "--json-status-fd", str(status_fd), "--block-fd", str(block_fd)]


def _system(plan: LaunchPlan) -> list[str]:
    argv: list[str] = ["--perms", "0755", "--dir", "/etc"]
    for path in plan.system_binds:
        argv += ["--ro-bind", path, path]
    for path, target in plan.system_links.items():
        argv += ["--symlink", target, path]
    # not bubblewrap's own /dev: its terminals come out of one stock for all sandboxes
    argv += ["--proc", "/proc", "--perms", "0755", "--tmpfs", "/dev"]
    for name in _DEVICES:
        argv += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in _DEVICE_LINKS.items():
        argv += ["--symlink", target, f"/dev/{name}"]
    for path in MASKED:
        if os.path.exists(path):
            argv += ["--ro-bind", "/dev/null", path]
    # shared memory counts as memory, so its size is the memory limit
    argv += ["--perms", "1777", "--size", str(plan.limits.memory_bytes), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    return argv


def _forge_paths(plan: LaunchPlan, workspace: str, messages: str) -> list[str]:
    argv: list[str] = []
    made: set[str] = {"/"}
    targets = [bind.target for bind in plan.binds] + [*view.WORKSPACE.values(), view.MESSAGES]
    for target in (view.INPUTS + "/x", view.ANALYSIS + "/x", *targets):
        # bubblewrap makes missing parents with mode 0700, through which another uid cannot pass
        for parent in reversed(Path(target).parents):
            if (folder := str(parent)) not in made and folder not in ("/usr", "/usr/local"):
                argv += ["--perms", "0755", "--dir", folder]
                made.add(folder)
    for bind in plan.binds:
        argv += ["--ro-bind", bind.source, bind.target]
    for name, target in view.WORKSPACE.items():
        argv += ["--bind", f"{workspace}/{name}", target]
    argv += ["--bind", messages, view.MESSAGES]
    return argv


def verify_tree(plan: LaunchPlan, pid: int) -> None:
    """Compare the mounts and namespaces that bubblewrap made, seen from outside, with the plan.

    Args:
        pid: bubblewrap's inner process, when it has made all mounts and given up its privileges.

    Raises:
        SandboxError: Something is not as the plan says.
    """
    mounts = verify_binds(plan, pid)
    for path in ("/", *plan.system_binds):
        if not {"ro", "nosuid"} <= mounts.get(path, set()):
            raise SandboxError(f"{path} is not mounted read-only.")
    verify_namespaces(pid)


def verify_binds(plan: LaunchPlan, pid: int, options: tuple[str, ...] = ("ro", "nosuid", "nodev")) -> dict[str, set[str]]:
    """See that process `pid` has the very files of the plan, mounted with `options`; returns those of all its mounts by mount point.

    Raises:
        SandboxError: It has not.
    """
    mounts = _mount_options(_read(f"/proc/{pid}/mountinfo"))
    for bind in plan.binds:
        seen = os.stat(f"/proc/{pid}/root{bind.target}", follow_symlinks=False)
        if (seen.st_dev, seen.st_ino) != (bind.device, bind.inode):
            raise SandboxError(f"{bind.source} changed while it was mounted: not the file that was checked.")
        if not set(options) <= mounts.get(bind.target, set()):
            raise SandboxError(f"{bind.target} is not mounted read-only.")
    return mounts


def verify_namespaces(pid: int, *more: str) -> None:
    """See that process `pid` shares none of the host's namespaces that bubblewrap makes, nor `more`.

    Raises:
        SandboxError: It does.
    """
    for namespace in (*_MADE_BY_BUBBLEWRAP, *more):
        if _namespace(pid, namespace) == _namespace("self", namespace):
            raise SandboxError(f"The sandbox shares the host's {namespace} namespace.")


def verify_command(identity: Identity, pid: int, keeper: int, membership: set[str]) -> None:
    """Compare the process that is to become the command, and waits, with what it should be.

    Args:
        pid: That process; nothing of the analysis has run in it yet.
        keeper: bubblewrap's inner process, whose tree was verified.
        membership: The groups that it must be in.

    Raises:
        SandboxError: It is in another place, or has something to give away.
    """
    for namespace in _MADE_BY_BUBBLEWRAP:
        if _namespace(pid, namespace) != _namespace(keeper, namespace):
            raise SandboxError(f"The command would start in another {namespace} namespace than the sandbox'.")
    if _namespace(pid, "cgroup") == _namespace("self", "cgroup"):
        raise SandboxError("The sandbox shares the host's cgroup namespace.")
    verify_membership(pid, membership)
    if not identity.is_own:
        # of the same user as bubblewrap's processes, and so able to take them over, if it were in their namespace
        if _namespace(pid, "user") == _namespace(keeper, "user"):
            raise SandboxError("The command would start in the user namespace of bubblewrap's own processes.")
        # the host's id in the middle is that of this process, which lies outside of the sandbox' namespace
        _, outside, count = _read(f"/proc/{pid}/uid_map").split()
        if (int(outside), int(count)) != (identity.uid, 1):
            raise SandboxError("The sandbox's user namespace maps other users than its own.")
    verify_privileges(identity, pid)


def _namespace(pid: int | str, name: str) -> int:
    return os.stat(f"/proc/{pid}/ns/{name}").st_ino


def verify_membership(pid: int, membership: set[str], *, beneath: bool = False) -> None:
    """See that process `pid` is in the execution's groups, or in groups `beneath` them.

    Raises:
        SandboxError: It is not.
    """
    groups = _groups(_read(f"/proc/{pid}/cgroup"))
    if beneath:
        groups = {wanted for wanted in membership if any(one.startswith(f"{wanted}/") for one in groups)}
    if missing := membership - groups:
        raise SandboxError(f"The sandbox is not in its cgroup: {sorted(missing)}.")


def open_files_limit(pid: int, asked: int) -> Enforced:
    """How many descriptors each process may have open, as the kernel holds it for the first of them.

    Raises:
        SandboxError: It is not what was asked.
    """
    line = next(line for line in _read(f"/proc/{pid}/limits").splitlines() if line.startswith("Max open files"))
    if line.split()[3:5] != [str(asked)] * 2:
        raise SandboxError(f"The open files limit was set to {asked}, but the kernel says: {line}.")
    return Enforced(value=asked, source="RLIMIT_NOFILE of each process, by /proc/PID/limits")


def verify_privileges(identity: Identity, pid: int) -> None:
    """See that process `pid` is who it should be, may nothing, and is under a filter.

    Raises:
        SandboxError: It has something to give away.
    """
    _verify_privileges(identity, _read(f"/proc/{pid}/status"))


def _verify_privileges(identity: Identity, text: str) -> None:
    status = {name: value.split() for name, _, value in (line.partition(":") for line in text.splitlines())}
    expected = {name: ["0" * 16] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")}
    expected |= {"Uid": [str(identity.uid)] * 4, "Gid": [str(identity.gid)] * 4, "NoNewPrivs": ["1"], "Seccomp": ["2"]}
    if identity.is_own:  # an ordinary user cannot take supplementary groups from a process
        expected["Groups"] = []
        if status.get("Groups") == [str(identity.gid)]:  # its own once more, as container engines have it
            status["Groups"] = []
    for name, wanted in expected.items():
        if status.get(name) != wanted:
            raise SandboxError(
                f"The command would start with {name} {' '.join(status.get(name, ['unknown']))}, not {' '.join(wanted)}."
            )


def _read(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return file.readall().decode("utf-8", "surrogateescape")


def _groups(text: str) -> set[str]:
    """`controller:path` of every group in `/proc/PID/cgroup`; a v2 group has no controller before the colon."""
    groups: set[str] = set()
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(f"{controller}:{path}" for controller in controllers.split(","))
    return groups


def _mount_options(mountinfo: str) -> dict[str, set[str]]:
    """Options by mount point; of several mounts on one point, the last and so visible one."""
    options: dict[str, set[str]] = {}
    for line in mountinfo.splitlines():
        fields = line.split(" ", 6)
        point = fields[4]
        if "\\" in point:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)
        options[point] = set(fields[5].split(","))
    return options
