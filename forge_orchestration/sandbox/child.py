"""The processes that the supervisor starts for one execution, and what it holds of them.

bubblewrap makes the sandbox and keeps it; the entrant starts the command in it (see `entry`). Both stay in the supervisors'
group: the execution's own group holds the analysis and nothing else, so what is measured there is the analysis'.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator

import msgspec

from forge_orchestration.errors import SandboxError, StuckError
from forge_orchestration.model.record import Measured
from forge_orchestration.sandbox import bubblewrap, entry, view
from forge_orchestration.sandbox.cgroups.base import Cgroup
from forge_orchestration.sandbox.entry import Ended, Entrant, Failed, Keeper, Launch
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.plan import LaunchPlan

# bubblewrap's own command: it waits for an end of its input that comes when the supervisor ends, however that does
_PLACEHOLDER = ("/usr/bin/cat",)
_DEFAULT_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD)
_UNHEARD = (signal.SIGTERM,)  # by bubblewrap, whose end would be that of the analysis, without a grace; the supervisor hears it
_END_TIMEOUT_S = 10.0
_BLOCK_BYTES = 512  # the unit of rusage
_LAST_WORDS_S = 1.0


class Child:
    """bubblewrap and the command, as the supervisor holds them.

    Attributes:
        stdout, stderr, messages: Descriptors to read, non-blocking.
        standing: Hangs up when the mount tree stands and bubblewrap has given up its privileges.
        channel: To the entrant, and to the command before it is one.
        inner_pid: Of bubblewrap's inner process, which keeps the namespaces; main_pid: of the command. Both as the host counts.
        keeper: Becomes readable when bubblewrap has ended.
        released_at: When the command was let go, on the monotonic clock; 0 before.
        exit_status: Of the command, as a shell would report it (128 + number for a signal); None before its end.
    """

    def __init__(
        self, pid: int, entrant: Entrant, stdout: int, stderr: int, complaints: int, messages: int,
        standing: socket.socket, hold: int,
    ) -> None:  # fmt: skip
        self._pid, self._entrant = pid, entrant
        self.keeper = os.pidfd_open(pid)
        self.stdout, self.stderr, self.messages = stdout, stderr, messages
        self.standing, self.channel = standing, entrant.channel
        self.started_at = time.monotonic()
        self.released_at = 0.0
        self.exit_status: int | None = None
        self.signal: int | None = None
        self.inner_pid = self.main_pid = 0
        self._complaints, self._hold = complaints, hold
        self._inner = -1
        self._blocks = [0, 0]
        self._ended: int | None = None
        self._killed = False

    def enter(self) -> None:
        """The sandbox stands: let the command-to-be go in.

        Raises:
            SandboxError: It does not stand, because bubblewrap ended.
        """
        while self._inner < 0:
            self.hear()
        with contextlib.suppress(BrokenPipeError):  # it has failed, and its word for why is waiting
            self.channel.send(entry.ENTER)

    def hear(self) -> int | None:
        """Take one word of the entrant or the command-to-be; returns the descriptor of the filter with the latter's.

        Raises:
            SandboxError: The command could not be started.
        """
        room = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(12)
        try:
            word, ancillary, _, _ = self.channel.recvmsg(65536, room)
        except ConnectionResetError:  # it was killed before it took our last word; what it said before that is still there
            word, ancillary, _, _ = self.channel.recvmsg(65536, room)
        descriptor, sender = -1, 0
        for _level, kind, data in ancillary:
            if kind == socket.SCM_RIGHTS:
                descriptor = int.from_bytes(data[:4], sys.byteorder, signed=True)
                os.set_inheritable(descriptor, False)
            elif kind == _SCM_CREDENTIALS:
                sender = struct.unpack("3i", data[:12])[0]  # as this process sees it, by the kernel's word
        if word == entry.READY:
            if descriptor < 0 or not sender:
                raise SandboxError("The system call filter was installed without telling.")
            self.main_pid = sender
            return descriptor
        if not word:
            # it ends without a word when bubblewrap gives up; or somebody has killed it
            gave_up = self._inner < 0 and select.select([self.keeper], [], [], _LAST_WORDS_S)[0]
            raise self._given_up() if gave_up else SandboxError("The process that was to start the command ended.")
        said = msgspec.json.decode(word, type=dict[str, object])
        if "failed" in said:
            raise SandboxError(f"The command could not be started: {msgspec.convert(said, Failed).failed}.")
        if "keeper_pid" in said:
            self._inner, self.inner_pid = descriptor, msgspec.convert(said, Keeper).keeper_pid
            return None
        ended = msgspec.convert(said, Ended)
        code = os.waitstatus_to_exitcode(ended.status)
        self.signal = -code if code < 0 else None
        self.exit_status = code if code >= 0 else 128 - code
        self._blocks = [ended.blocks_read, ended.blocks_written]
        return None

    def release(self) -> None:
        """Let the command start."""
        self.released_at = time.monotonic()
        self.channel.send(entry.GO)

    def reap_keeper(self) -> SandboxError | None:
        """Its bubblewrap has ended before the command: what that means, or None if it was our or the analysis' own doing."""
        status = self._reap()
        if self._killed:
            return None
        if not self.released_at:
            return self._given_up()
        return SandboxError("bubblewrap was killed.") if os.WIFSIGNALED(status) else None

    def given_up_or(self, error: Exception) -> Exception:
        """What bubblewrap says if it has given up, and so has led to `error`; else that."""
        if self.released_at or self._killed or not select.select([self.keeper], [], [], _LAST_WORDS_S)[0]:
            return error
        return self.reap_keeper() or error

    def kill(self) -> None:
        """Begin to end bubblewrap, and with it every process and mount of the sandbox."""
        self._killed = True
        if self._ended is None:
            if self._inner >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._inner, signal.SIGKILL)
            else:
                self._kill_before_keeper()

    def _kill_before_keeper(self) -> None:
        """Bubblewrap has not said who its inner process is: while it is young, the outer one's end is not the inner one's."""
        os.kill(self._pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(OSError), open(f"/proc/{self._pid}/task/{self._pid}/children") as file:
            for pid in file.read().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        os.kill(self._pid, signal.SIGKILL)

    def end(self) -> None:
        """The same, and wait until it is done."""
        self.kill()
        if self._inner >= 0:
            # the mounts have gone with it; the outer process follows
            if not select.select([self._inner], [], [], _END_TIMEOUT_S)[0]:
                raise StuckError(f"bubblewrap's process {self.inner_pid} does not end.", "Something of it may hang in the kernel.")
        else:
            self._reap()

    @property
    def io_read(self) -> Measured:
        """Bytes that the tree read from disks, as far as its processes were waited for."""
        return Measured(value=self._blocks[0] * _BLOCK_BYTES, source="rusage of the process tree")

    @property
    def io_write(self) -> Measured:
        """Bytes that the tree wrote to disks."""
        return Measured(value=self._blocks[1] * _BLOCK_BYTES, source="rusage of the process tree")

    def close(self) -> None:
        """End and reap what is still there, and close every descriptor."""
        self.kill()
        self._reap()
        if self.exit_status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._entrant.pid, signal.SIGKILL)
        os.waitpid(self._entrant.pid, 0)
        for fd in (self.keeper, self.stdout, self.stderr, self._complaints, self.messages, self._hold, self._inner):
            if fd >= 0:
                os.close(fd)
        self.standing.close()
        self.channel.close()

    def _reap(self) -> int:
        if self._ended is None:
            if not select.select([self.keeper], [], [], _END_TIMEOUT_S)[0]:
                raise StuckError(f"bubblewrap's process {self._pid} does not end.", "Something of it may hang in the kernel.")
            _, status, used = os.wait4(self._pid, 0)
            self._ended = status
            # its inner process adopts and reaps what the command leaves behind
            self._blocks = [self._blocks[0] + used.ru_inblock, self._blocks[1] + used.ru_oublock]
        return self._ended

    def _given_up(self) -> SandboxError:
        """What bubblewrap said when it could not make the sandbox; it is killed if it has not ended."""
        self.kill()
        code = os.waitstatus_to_exitcode(self._reap())
        said = ""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self._complaints, 4096).decode(errors="replace").strip()
        return SandboxError(f"bubblewrap could not set up the sandbox: {said or f'exit status {code}'}", _remedy(said))


_SCM_CREDENTIALS = 2


@contextlib.contextmanager
def start_child(
    plan: LaunchPlan, identity: Identity, group: Cgroup, entrant: Entrant, workspace: str, messages: str, *, limit_file_size: bool
) -> Iterator[Child]:
    """Start bubblewrap for `plan`, and have the entrant wait for its sandbox.

    Raises:
        SandboxError: They could not be started.
    """
    deadline = time.time() + plan.limits.wall_time_s
    with contextlib.ExitStack() as theirs:  # closed here once they have them

        def given(fd: int) -> int:
            theirs.callback(os.close, fd)
            return fd

        stdout, stdout_w = os.pipe2(os.O_CLOEXEC)
        stderr, stderr_w = os.pipe2(os.O_CLOEXEC)
        if identity.is_own:
            # programs open /dev/stderr anew; the pipe belongs to another user than the execution, which may add to it and no more
            for fd in (stdout_w, stderr_w):
                os.fchmod(fd, 0o622)
        complaints, complaints_w = os.pipe2(os.O_CLOEXEC)
        status, status_w = os.pipe2(os.O_CLOEXEC)  # the entrant reads it
        hold_r, hold = os.pipe2(os.O_CLOEXEC)
        standing, theirs_standing = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        messages_fd = os.open(messages, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        for fd in (stdout, stderr, complaints):
            os.set_blocking(fd, False)
        null = given(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        nothing = given(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        files = {
            view.PARAMS: given(_file(plan.parameters_json)),
            view.README: given(_file(view.README_TEXT)),
            "/etc/passwd": given(_file(view.passwd(identity.uid, identity.gid))),
            "/etc/group": given(_file(view.group(identity.gid))),
            "/etc/hosts": given(_file(view.HOSTS)),
            "/etc/nsswitch.conf": given(_file(view.NSSWITCH)),
        }
        for fd in (stdout_w, stderr_w, complaints_w, status, status_w, hold_r):
            given(fd)
        standing.send(b".")  # what bubblewrap waits to read, once all else is done; then it closes its end
        argv = bubblewrap.arguments(
            plan,
            identity,
            workspace=workspace,
            messages=messages,
            files=files,
            status_fd=status_w,
            block_fd=theirs_standing.fileno(),
        )
        # by a descriptor, not by its command line: that can be read in the sandbox, and names folders of the host
        words = given(_file("\0".join(argv[1:]) + "\0"))
        for fd in (*files.values(), words, status_w, theirs_standing.fileno()):
            os.set_inheritable(fd, True)
        with theirs_standing:
            pid = os.posix_spawn(
                argv[0], [argv[0], "--args", str(words), "--", *_PLACEHOLDER], {}, setsigmask=_UNHEARD, setsigdef=_DEFAULT_SIGNALS,
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate((hold_r, null, complaints_w))],
            )  # fmt: skip
        launch = Launch(
            command=plan.command, environment=plan.environment | {"FORGE_DEADLINE": f"{deadline:.3f}"}, identity=identity,
            join_files=group.join_files, open_files=plan.limits.open_files,
            file_size_bytes=plan.limits.scratch_bytes if limit_file_size else None, neighbours=plan.neighbours,
        )  # fmt: skip
        entrant.send(launch, status, (nothing, stdout_w, stderr_w))
    child = Child(pid, entrant, stdout, stderr, complaints, messages_fd, standing, hold)
    try:
        yield child
    finally:
        child.close()


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
