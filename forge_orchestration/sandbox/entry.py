"""Going into a sandbox that stands: namespaces, cgroup, limits, identity, filter, and at last the command.

bubblewrap builds the house and stays outside of the analysis' budget; the command is not its child. While it builds, the
*entrant*, forked from the supervisor, enters the new pid namespace and forks once more: that child is the first process of the
analysis. When the house stands, it goes in, gives up everything that it has, step by step, tells the supervisor, and waits: only
when the supervisor has looked at it from outside and found all as it should be, it becomes the command.

Until then nothing of the analysis was loaded, opened or executed, and no variable of it was set. The last program of the host
is `env`, from the read-only `/usr` inside: a hostile script that names `/proc/self/exe` as its interpreter finds that, and not
a Python of the host's.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from typing import NoReturn

import msgspec

from forge_orchestration.model.sections import NeighbourSettings
from forge_orchestration.sandbox import linux, precedence, seccomp, subordinate, view
from forge_orchestration.sandbox.cgroups.base import write
from forge_orchestration.sandbox.identity import Identity

ENTER, READY, GO = b"enter", b"ready", b"go"
_SIGNALS, _QUEUE_BYTES = 1024, 80 << 10
_INSIDE = linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWNET


class Keeper(msgspec.Struct, frozen=True, kw_only=True):
    """bubblewrap's inner process, which keeps the namespaces; its descriptor comes with this."""

    keeper_pid: int


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How the command ended: `status` as `wait` gives it, and blocks of 512 bytes that its tree read and wrote."""

    status: int
    blocks_read: int
    blocks_written: int


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The command was not started."""

    failed: str


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What a process takes with it into a sandbox.

    Attributes:
        join_files: Each makes the process that writes "0" to it a member of one of the execution's groups.
        open_files: Descriptors that a process may have open.
        file_size_bytes: What one file may grow to, where the kernel limits nothing else; None if it does.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    identity: Identity
    join_files: tuple[str, ...]
    open_files: int
    file_size_bytes: int | None
    neighbours: NeighbourSettings = NeighbourSettings()


class Entrant:
    """The entrant as the supervisor holds it. It is forked ahead, off the path of any execution, and ends with its channel."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.pid = os.fork()
        if self.pid == 0:
            self.channel.close()
            _run(theirs)
        theirs.close()

    def send(self, launch: Launch, status: int, standard: tuple[int, int, int]) -> None:
        """Say what to start.

        Args:
            status: Where bubblewrap tells the pid of its inner process.
            standard: Descriptors that become standard input, output and error.
        """
        described = os.memfd_create("forge", os.MFD_CLOEXEC)  # a command may be longer than a packet
        try:
            os.write(described, msgspec.json.encode(launch))
            os.lseek(described, 0, os.SEEK_SET)
            socket.send_fds(self.channel, [b"launch"], [described, status, *standard])
        finally:
            os.close(described)


def last_words(launch: Launch) -> list[str]:
    """The arguments of `env`: the variables are set only there, by a program that has nothing left to give away."""
    return ["env", "-i", *(f"{name}={value}" for name, value in launch.environment.items()), *launch.command]


def _run(channel: socket.socket) -> NoReturn:
    """The entrant: start the command in the sandbox that bubblewrap makes, and tell how it ended.

    Protocol, on a sequenced-packet socket: the supervisor sends a `Launch`; this process says who the `Keeper` is; the supervisor
    says `ENTER` when the sandbox and the cgroup stand; the command-to-be answers `READY` with the descriptor of its filter; `GO`
    lets it become the command; this process says `Ended`, or one of the two says `Failed`.
    """
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        # whoever ends all processes of a service or of a job tells the supervisor too, and it is the one that gives a grace
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        linux.die_with_parent(signal.SIGKILL)
        _, descriptors, _, _ = socket.recv_fds(channel, 16, 5)
        if descriptors:
            described, status, *standard = descriptors
            with os.fdopen(described, "rb") as file:
                launch = msgspec.json.decode(file.read(), type=Launch)
            if (keeper := _keeper_pid(status)) is not None:
                channel.send(msgspec.json.encode(_start(channel, launch, standard, keeper)))
    except BaseException as error:
        channel.send(msgspec.json.encode(Failed(failed=f"{type(error).__name__}: {error}")))
    finally:
        os._exit(0)


def _keeper_pid(status: int) -> int | None:
    said = b""
    while b"}" not in said:
        if not (data := os.read(status, 4096)):
            return None  # it gave up before there was any; the supervisor hears why
        said += data
    return int(msgspec.json.decode(said.split(b"}")[0] + b"}")["child-pid"])


def _start(channel: socket.socket, launch: Launch, standard: list[int], keeper: int) -> Ended:
    sandbox = os.pidfd_open(keeper)
    socket.send_fds(channel, [msgspec.json.encode(Keeper(keeper_pid=keeper))], [sandbox])
    if not launch.identity.is_own:
        linux.enter_namespaces(sandbox, linux.CLONE_NEWUSER)
        linux.die_with_parent(signal.SIGKILL)  # the change of credentials took it back
    linux.enter_namespaces(sandbox, linux.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        try:
            _become_command(channel, launch, standard, sandbox)
        except BaseException as error:
            channel.send(msgspec.json.encode(Failed(failed=f"{type(error).__name__}: {error}")))
        finally:
            os._exit(127)
    for fd in (*standard, sandbox):
        os.close(fd)  # else the supervisor would wait for the end of pipes that only this process holds
    _, status, used = os.wait4(pid, 0)
    return Ended(status=status, blocks_read=used.ru_inblock, blocks_written=used.ru_oublock)


def _leave_user_namespace(identity: Identity) -> None:
    """Go into a user namespace inside bubblewrap's.

    bubblewrap's processes are outside of the cgroup and the filter, and here they belong to the same user as the command: in one
    namespace with them it could write into their memory. From inside another it has no rights over them.
    """
    linux.unshare(linux.CLONE_NEWUSER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{identity.uid} {identity.uid} 1")
    write("/proc/self/gid_map", f"{identity.gid} {identity.gid} 1")


def _become_command(channel: socket.socket, launch: Launch, standard: list[int], sandbox: int) -> None:
    os.setsid()  # no controlling terminal to push characters into
    program, words = seccomp.filter_program(), last_words(launch)
    if channel.recv(16) != ENTER:
        return
    for path in launch.join_files:  # by the host's paths, and so before the mounts change
        write(path, "0")
    precedence.stand_back(launch.neighbours)
    linux.take_login_uid(launch.identity.uid)
    if not launch.identity.is_own:
        subordinate.limit_shared_stocks()
        write("/proc/sys/user/max_user_namespaces", "1")  # of bubblewrap's, in which this process is: the one below, and no further
    linux.enter_namespaces(sandbox, _INSIDE)
    linux.unshare(linux.CLONE_NEWCGROUP)  # its own group is the root that it sees
    if not launch.identity.is_own:
        _leave_user_namespace(launch.identity)
    os.chdir(view.SCRATCH)
    os.umask(0o022)
    # 0 would still hand a core to a host's handler that is a pipe; 1 does not
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    # stocks of the kernel that are a user's, and so in part the host's or other executions'
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (_SIGNALS, _SIGNALS))
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (_QUEUE_BYTES, _QUEUE_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (launch.open_files, launch.open_files))
    if launch.file_size_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (launch.file_size_bytes, launch.file_size_bytes))
    for target, fd in enumerate(standard):
        os.dup2(fd, target)
    linux.drop_bounding_set()
    if launch.identity.is_own:
        os.setgroups([])
        os.setresgid(launch.identity.gid, launch.identity.gid, launch.identity.gid)
        os.setresuid(launch.identity.uid, launch.identity.uid, launch.identity.uid)
    linux.join_new_session_keyring()
    linux.drop_capabilities()
    linux.be_dumpable()
    linux.die_with_parent(signal.SIGKILL)
    listener = linux.install_filter(program)
    socket.send_fds(channel, [READY], [listener])
    if channel.recv(16) == GO:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.closerange(3, 1 << 20)
        os.execve("/usr/bin/env", words, {})
