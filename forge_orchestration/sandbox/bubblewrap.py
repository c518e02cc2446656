"""From a launch plan to bubblewrap's command line, and the checks between its mounts and the command's first instruction.

The last thing that bubblewrap puts into the sandbox is a small file whose content it reads from a pipe: the gate. When the
supervisor sees that the pipe is being read, the whole mount tree stands; until it closes the pipe, bubblewrap waits. In
between, what is mounted, and in which groups and namespaces, is compared with the plan.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from forge_orchestration.errors import HostError, SandboxError
from forge_orchestration.sandbox import view
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.plan import LaunchPlan

# where bubblewrap builds the tree before it becomes the root
_NEW_ROOT = "/newroot"
NAMESPACES = ("mnt", "pid", "ipc", "uts", "net", "cgroup")
# capabilities that the inner process needs for one moment, to become the execution's uid
_TO_DROP_ROOT = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
# what others than root may read there, and that is the host's
_ON_THE_WAY = ("/usr/bin/setpriv",)
_MASKED = ("/proc/keys", "/proc/key-users")


def find_bubblewrap() -> str:
    """The path of `bwrap`.

    Raises:
        HostError: It is not installed.
    """
    path = shutil.which("bwrap")
    if path is None:
        raise HostError("bubblewrap (bwrap) is not installed.", "Install it: sudo apt-get install bubblewrap")
    return os.path.realpath(path)


def arguments(
    plan: LaunchPlan, identity: Identity, *, files: dict[str, int], seccomp_fd: int, status_fd: int, gate_fd: int
) -> list[str]:
    """Bubblewrap's whole command line, the analysis' command included.

    Args:
        files: Descriptor by path of the small files that are made for this sandbox.
    """
    argv = [plan.bubblewrap, "--clearenv"]
    argv += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup", "--hostname", "forge"]
    argv += ["--die-with-parent"]  # tied to the supervisor, which is single-threaded: a dead one leaves nothing running
    argv += ["--new-session"]  # no controlling terminal to push characters into
    if identity.mode == "own_uid":
        argv += ["--cap-drop", "ALL"]
        for capability in _TO_DROP_ROOT:
            argv += ["--cap-add", capability]
    else:
        argv += ["--unshare-user", "--disable-userns", "--uid", str(identity.uid), "--gid", str(identity.gid), "--cap-drop", "ALL"]
    argv += _system(plan)
    for path, fd in files.items():
        # a file of the root itself, which is made read-only below, costs less than a mount
        argv += ["--perms", "0444", "--file", str(fd), path]
    argv += _forge_paths(plan)
    # what bubblewrap made of the root itself is not writable either
    argv += ["--remount-ro", "/"]
    # last, onto the placeholder of the same name: from here on nothing is mounted any more
    argv += ["--perms", "0444", "--ro-bind-data", str(gate_fd), view.README]
    argv += ["--chdir", "/", "--seccomp", str(seccomp_fd), "--json-status-fd", str(status_fd), "--"]
    if identity.mode == "own_uid":
        # the host's setpriv, from the read-only /usr: nothing of the analysis is loaded before root is gone
        argv += ["/usr/bin/setpriv", f"--reuid={identity.uid}", f"--regid={identity.gid}", "--clear-groups"]
        argv += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
    # its variables are set only now: LD_PRELOAD and its like would otherwise be loaded into setpriv
    # and its folder is entered only now: root without its capabilities may not
    argv += ["/usr/bin/env", "-i", "-C", view.SCRATCH, *(f"{name}={value}" for name, value in plan.environment.items())]
    return argv + list(plan.command)


def _system(plan: LaunchPlan) -> list[str]:
    argv: list[str] = ["--perms", "0755", "--dir", "/etc"]
    for path in plan.system_binds:
        argv += ["--ro-bind", path, path]
    for path, target in plan.system_links.items():
        argv += ["--symlink", target, path]
    argv += ["--proc", "/proc", "--dev", "/dev"]
    for path in _MASKED:
        if os.path.exists(path):
            argv += ["--ro-bind", "/dev/null", path]
    # shared memory counts as memory, so its size is the memory limit
    argv += ["--perms", "1777", "--size", str(plan.limits.memory_bytes), "--tmpfs", "/dev/shm"]
    return argv


def _forge_paths(plan: LaunchPlan) -> list[str]:
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
        argv += ["--bind", f"{plan.workspace}/{name}", target]
    argv += ["--bind", f"{plan.folder}/messages.fifo", view.MESSAGES]
    return argv


def verify(plan: LaunchPlan, identity: Identity, pid: int, membership: set[str]) -> None:
    """Compare what stands, seen from outside through process `pid`, with the plan. Nothing of the analysis has run yet.

    Raises:
        SandboxError: Something is not as the plan says.
    """
    proc = f"/proc/{pid}"
    mounts = _mount_options(Path(proc, "mountinfo").read_text())
    for bind in plan.binds:
        seen = os.stat(f"{proc}/root{_NEW_ROOT}{bind.target}", follow_symlinks=False)
        if (seen.st_dev, seen.st_ino) != (bind.device, bind.inode):
            raise SandboxError(f"{bind.source} changed while it was mounted: not the file that was checked.")
        if not {"ro", "nosuid", "nodev"} <= mounts.get(bind.target, set()):
            raise SandboxError(f"{bind.target} is not mounted read-only.")
    if "ro" not in mounts.get("/", set()) or not {"ro", "nosuid"} <= mounts.get("/usr", set()):
        raise SandboxError("The system's folders are not mounted read-only.")
    for namespace in NAMESPACES:
        if os.readlink(f"{proc}/ns/{namespace}") == os.readlink(f"/proc/self/ns/{namespace}"):
            raise SandboxError(f"The sandbox shares the host's {namespace} namespace.")
    if missing := membership - _groups(Path(proc, "cgroup").read_text()):
        raise SandboxError(f"The sandbox is not in its cgroup: {sorted(missing)}.")
    if identity.mode == "user_namespace":
        # here it is still the namespace in which bubblewrap mounts; the one that it makes next lies inside it and can map no more
        _, outside, count = Path(proc, "uid_map").read_text().split()
        if (int(outside), int(count)) != (identity.uid, 1):
            raise SandboxError("The sandbox's user namespace maps other users than its own.")


def unconfined_members(bubblewrap: str, identity: Identity, pids: set[int]) -> tuple[bool, dict[int, str]]:
    """Look at the processes of the analysis, once it runs: who they are, and that they have nothing left to give away.

    Returns:
        Whether there was any to look at (an analysis may be shorter than the time between two looks), and what is wrong with
        which. One look is no proof: the kernel takes the filter from a process that is just ending.
    """
    seen, wrong = False, {}
    confined = {"NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0" * 16, "CapPrm": "0" * 16, "CapInh": "0" * 16, "CapAmb": "0" * 16}
    for pid in pids:
        try:
            # asked first: what is still bubblewrap or setpriv now has not reached the analysis, whatever it is a moment later
            if os.readlink(f"/proc/{pid}/exe") in (bubblewrap, *_ON_THE_WAY):
                continue
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        uids = set(status.get("Uid", []))
        if "VmSize" not in status:
            continue  # it has ended
        found = [name for name, wanted in confined.items() if status.get(name) != [wanted]]
        if uids != {str(identity.uid)} or found:
            wrong[pid] = f"A process of the analysis runs as uid {sorted(uids)}, with {found or 'all else as it should be'}."
        else:
            seen = True
    return seen, wrong


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
        fields = line.split()
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if point.startswith(_NEW_ROOT):
            point = point.removeprefix(_NEW_ROOT) or "/"
        options[point] = set(fields[5].split(","))
    return options
