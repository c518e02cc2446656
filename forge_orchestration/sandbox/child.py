"""Starting bubblewrap: in its cgroup before its first instruction, with nothing inherited but what it needs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from forge_orchestration.errors import SandboxError
from forge_orchestration.model.record import Measured
from forge_orchestration.sandbox import bubblewrap, linux, seccomp, view
from forge_orchestration.sandbox.cgroups.base import Cgroup
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.plan import LaunchPlan


class Child:
    """bubblewrap as the supervisor holds it.

    Attributes:
        pid: The outer process, a child of ours; `inner_pid` the first one inside, as the host numbers it.
        stdout, stderr, messages: Descriptors to read, non-blocking.
        status: Where bubblewrap tells `inner_pid`.
        gate: Becomes writable when bubblewrap waits at the gate; None once the command was let go.
        released_at: When the command was let go, on the monotonic clock; 0 before.
    """

    def __init__(self, pid: int, stdout: int, stderr: int, messages: int, status: int, gate: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.stdout, self.stderr, self.messages, self.status = stdout, stderr, messages, status
        self.inner_pid = 0
        self.started_at = time.monotonic()
        self.released_at = 0.0
        self.io_read: Measured | None = None
        self.io_write: Measured | None = None
        self.gate: int | None = gate
        self._status_text = b""
        self._reaped = False

    def read_status(self) -> bool:
        """Take what bubblewrap says of its inner process; False when it says no more."""
        data = os.read(self.status, 4096)
        self._status_text += data
        if not self.inner_pid and b"}" in self._status_text:
            self.inner_pid = int(json.loads(self._status_text.split(b"}")[0] + b"}")["child-pid"])
        return bool(data)

    def await_inner_pid(self) -> None:
        """Wait for what bubblewrap says before it mounts anything, if it has not been read yet."""
        while not self.inner_pid and self.read_status():
            pass

    def release(self) -> None:
        """Let the command start."""
        assert self.gate is not None
        self.released_at = time.monotonic()
        os.close(self.gate)
        self.gate = None

    def reap(self) -> int:
        """The exit status, once `pidfd` is readable.

        Raises:
            SandboxError: bubblewrap gave up before the command could start; the sentence is bubblewrap's own.
        """
        _, status, used = os.wait4(self.pid, 0)
        self._reaped = True
        # bubblewrap's inner process reaps the whole tree, so its parent's account has everybody's transfers
        self.io_read = Measured(value=used.ru_inblock * 512, source="rusage of the process tree")
        self.io_write = Measured(value=used.ru_oublock * 512, source="rusage of the process tree")
        code = os.waitstatus_to_exitcode(status)
        if not self.released_at and code >= 0:
            with contextlib.suppress(BlockingIOError):
                said = os.read(self.stderr, 4096).decode(errors="replace").strip()
                raise SandboxError(f"bubblewrap could not set up the sandbox: {said or f'exit status {code}'}", _remedy(said))
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        """Close every descriptor; a process that is still there is killed and reaped first."""
        if not self._reaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for fd in (self.pidfd, self.stdout, self.stderr, self.messages, self.status, self.gate):
            if fd is not None:
                os.close(fd)


@contextlib.contextmanager
def start_child(plan: LaunchPlan, identity: Identity, group: Cgroup, fifo: Path, *, limit_file_size: bool) -> Iterator[Child]:
    """Start bubblewrap for `plan`, waiting at its gate.

    Raises:
        SandboxError: It could not be started.
    """
    deadline = time.time() + plan.limits.wall_time_s
    plan = msgspec.structs.replace(plan, environment=plan.environment | {"FORGE_DEADLINE": f"{deadline:.3f}"})
    with contextlib.ExitStack() as theirs:  # closed here once the child has them

        def pipe() -> tuple[int, int]:
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            return read_end, write_end

        def given(fd: int) -> int:
            theirs.callback(os.close, fd)
            os.set_inheritable(fd, True)
            return fd

        stdout, stdout_w = pipe()
        stderr, stderr_w = pipe()
        status, status_w = pipe()
        gate_r, gate = pipe()
        # filled to the brim, so that it takes no more until bubblewrap reads it
        fcntl.fcntl(gate, fcntl.F_SETPIPE_SZ, 4096)
        os.write(gate, view.README_TEXT.encode().ljust(fcntl.fcntl(gate, fcntl.F_GETPIPE_SZ)))
        messages = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        for fd in (stdout, stderr):
            os.set_blocking(fd, False)
        files = {
            view.PARAMS: given(_file(plan.parameters_json)),
            "/etc/passwd": given(_file(view.passwd(identity.uid, identity.gid))),
            "/etc/group": given(_file(view.group(identity.gid))),
            "/etc/hosts": given(_file(view.HOSTS)),
            "/etc/nsswitch.conf": given(_file(view.NSSWITCH)),
            view.README: given(_file("")),
        }
        filter_fd = given(seccomp.filter_descriptor())
        argv = bubblewrap.arguments(
            plan, identity, files=files, seccomp_fd=filter_fd, status_fd=given(status_w), gate_fd=given(gate_r)
        )
        standard = (given(os.open("/dev/null", os.O_RDONLY)), given(stdout_w), given(stderr_w))
        kept = {*files.values(), filter_fd, status_w, gate_r}
        most = plan.limits.scratch_bytes if limit_file_size else resource.RLIM_INFINITY
        pid = os.fork()
        if pid == 0:
            _become(argv, group, standard, kept, most)
    child = Child(pid, stdout, stderr, messages, status, gate)
    try:
        yield child
    finally:
        child.close()


def _become(argv: list[str], group: Cgroup, standard: tuple[int, int, int], kept: set[int], file_size: int) -> None:
    """In the forked child: join the group, close everything else, and become bubblewrap. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        linux.die_with_parent(signal.SIGKILL)
        group.join()
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # 0 would still hand a core to a host's handler that is a pipe; 1 does not
        if file_size != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        for target, fd in enumerate(standard):
            os.dup2(fd, target)
        last = 2
        for fd in sorted(kept):
            os.closerange(last + 1, fd)
            last = fd
        os.closerange(last + 1, 1 << 20)
        os.umask(0o022)
        os.execve(argv[0], argv, {})
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(127)


def _file(content: str) -> int:
    fd = os.memfd_create("forge", os.MFD_CLOEXEC)
    os.write(fd, content.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _remedy(said: str) -> str:
    if "RTM_NEWADDR" in said or "setting up uid map" in said or "setgroups" in said:
        return "AppArmor restricts user namespaces here; allow bwrap with a profile, or: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    if "No permissions to create" in said or "Creating new namespace failed" in said:
        return "Allow user namespaces: sudo sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000"
    return "See: forge doctor"
