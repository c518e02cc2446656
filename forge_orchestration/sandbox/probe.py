"""What this host can do, found out by doing it: each attempt returns what it found, or raises with the remedy."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from forge_orchestration.errors import HostError
from forge_orchestration.sandbox import linux, seccomp, subordinate
from forge_orchestration.sandbox.bubblewrap import find_bubblewrap
from forge_orchestration.sandbox.cgroups.find import find_site, scope_prefix
from forge_orchestration.settings import Settings

_NAMESPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup")
_VIEW = (
    "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
    "--proc", "/proc", "--dev", "/dev",
)  # fmt: skip


def attempts(settings: Settings) -> list[tuple[str, Callable[[], str]]]:
    """Name and attempt of everything that an execution on this host needs."""
    return [
        ("bubblewrap", _bubblewrap),
        ("namespaces", _namespaces),
        ("system_calls", _system_calls),
        ("identity", lambda: _identity(settings)),
        ("cgroups", lambda: _cgroups(settings)),
        ("scratch", _scratch),
    ]


def _bubblewrap() -> str:
    path = find_bubblewrap()
    return f"{_output([path, '--version'])} at {path}"


def _namespaces() -> str:
    user = () if os.geteuid() == 0 else ("--unshare-user", "--disable-userns")
    command = [
        find_bubblewrap(),
        *_NAMESPACES,
        *user,
        "--die-with-parent",
        "--new-session",
        *_VIEW,
        "readlink",
        "/proc/self/ns/net",
    ]
    inside = _output(
        command,
        "Allow user namespaces: sudo sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0",
    )
    if inside == os.readlink("/proc/self/ns/net"):
        raise HostError("bubblewrap made no network namespace.", "Update bubblewrap.")
    return "mount, pid, ipc, uts, net, cgroup" + (", user" if user else "")


def _system_calls() -> str:
    program = seccomp.filter_program()
    pid = os.fork()
    if pid == 0:
        try:
            linux.set_no_new_privileges()
            listener = linux.install_filter(program)
            os.close(listener)  # nobody counts here: what is refused fails with ENOSYS
            try:
                linux.unshare(linux.CLONE_NEWUTS)
            except OSError as error:
                os._exit(0 if error.errno == errno.ENOSYS else 2)
            os._exit(1)
        finally:
            os._exit(3)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        raise HostError(
            "The system call filter cannot be installed, or does not hold.",
            "It needs Linux 5.8 or newer with seccomp, and libseccomp2.",
        )
    return f"filter of {len(program) // 8} instructions, tried with unshare(2); what it refuses is counted"


def _identity(settings: Settings) -> str:
    if os.geteuid() != 0:
        wanted, lacking = settings.identity.without_root, subordinate.missing()
        if wanted == "subordinate_uid" or (wanted == "auto" and not lacking):
            if lacking:
                raise HostError(f"Executions cannot have uids of their own: {lacking}.", subordinate.REMEDY)
            first, count = map(int, _output([*subordinate.prefix(), "cat", "/proc/self/uid_map"], subordinate.REMEDY).split()[-2:])
            return f"a uid an execution, from {first} to {first + count - 1}, set aside for this user"
        why = f" ({lacking})" if lacking and wanted == "auto" else ""
        return f"user namespace of uid {os.geteuid()}: executions share this user's identity on the host{why}"
    first = settings.identity.first_uid
    return f"a uid an execution, from {first} to {first + settings.identity.count - 1}"


def _cgroups(settings: Settings) -> str:
    prefix = scope_prefix(settings.cgroup.parent)
    if not prefix:
        site = find_site(settings.cgroup.parent)
        return f"cgroup v{site.version}, group {site.parent}"
    # in a scope of its own, as a spawner would be
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from forge_orchestration.sandbox.cgroups.find import find_site; "
    code += "site = find_site(); site.enter(); print(site.version, site.parent)"
    said = _output(
        [*prefix, sys.executable, "-I", "-c", code], "For an ordinary user: loginctl enable-linger $USER, and log in again."
    )
    version, _, parent = said.partition(" ")
    return f"cgroup v{version} in a systemd scope ({parent})"


def _scratch() -> str:
    if os.geteuid() != 0:
        return "a folder: one file is limited by the kernel, the sum is measured (as root it would be a file system of its own)"
    if not os.path.exists("/dev/loop-control"):
        raise HostError("There are no loop devices.", "Load them: sudo modprobe loop")
    for tool in ("mkfs.ext4", "tune2fs", "dumpe2fs"):
        if shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            raise HostError(f"{tool} is not installed.", "Install it: sudo apt-get install e2fsprogs")
    return "a file system of its own on a loop device"


def _output(command: list[str], remedy: str = "") -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{command[0]} cannot be run: {error}.", remedy) from error
    if done.returncode != 0:
        raise HostError(f"{os.path.basename(command[0])} failed: {' '.join(done.stderr.split())[-300:]}", remedy)
    return done.stdout.strip()
