"""What Forge asks of a control group, whatever the kernel's version of it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from forge_orchestration.errors import SandboxError, StuckError
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.record import Enforced, Measured

CPU_PERIOD_US = 100_000
_CONTROL_FILE_BYTES = 2**16
_AT_ONCE = 256


class Refusals(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel would not give a group. It decides end reasons, and is looked at many times a second.

    Attributes:
        oom_kills: Processes of the group that the kernel killed for want of memory.
        memory_limit_hit: Whether the kernel looked for something to kill because of the group's own limit, not of one above it.
        pids_refused: How often the kernel refused a process or thread.
        socket_bytes_over: What sockets hold beyond what they may, in bytes, where memory does not count them and the kernel only
            slows down who goes on.
    """

    oom_kills: int = 0
    memory_limit_hit: bool = False
    pids_refused: int = 0
    socket_bytes_over: int = 0


class Counters(Refusals, frozen=True, kw_only=True):
    """All that the kernel counted for a group, its usage among it."""

    cpu_user_s: Measured | None = None
    cpu_system_s: Measured | None = None
    peak_memory_bytes: Measured | None = None
    peak_pids: Measured | None = None
    io_read_bytes: Measured | None = None
    io_write_bytes: Measured | None = None


class Cgroup(ABC):
    """The group of one execution: every process of it is a member from before its first instruction."""

    kind: str
    join_file: str
    name: str
    holds_container = False
    """Whether its members are in a group beneath it, which goes with them."""

    def __init__(self) -> None:
        self._seen_beneath: dict[str, int] = {}

    @property
    @abstractmethod
    def paths(self) -> list[Path]:
        """The folders that make up the group (one on v2, one a controller on v1)."""

    @abstractmethod
    def create(self) -> None:
        """Make the group, empty."""

    @abstractmethod
    def set_limits(self, limits: Limits) -> dict[str, Enforced]:
        """Set memory, processor and process limits, and read them back.

        Raises:
            SandboxError: A limit could not be set, or the kernel holds another value than the one asked.
        """

    @abstractmethod
    def membership(self) -> set[str]:
        """The lines that `/proc/PID/cgroup` holds for a member, without the hierarchy numbers of v1."""

    @abstractmethod
    def refusals(self) -> Refusals:
        """What the kernel refused until now."""

    @abstractmethod
    def counters(self) -> Counters:
        """What the kernel counted until now."""

    @abstractmethod
    def kill(self) -> None:
        """Send SIGKILL to every member at once, in a way that no fork can outrun."""

    def watch_out_of_memory(self) -> int | None:
        """A descriptor that becomes readable when members lack memory, until `refusals` is called; None if all end by itself."""
        return None

    @property
    def join_files(self) -> tuple[str, ...]:
        """A process of one thread that writes "0" to each of them is a member."""
        return tuple(os.fspath(path / self.join_file) for path in self.paths)

    def pids(self) -> list[int]:
        """The members, those of a container's own group among them."""
        return [pid for folder, _, _ in os.walk(self.paths[0]) for pid in _members(folder)]

    def signal_members(self, number: int, spared: Iterable[int] = ()) -> int:
        """Send a signal to every member but `spared`; returns how many got it.

        They live meanwhile, and a pid may become somebody else's at any moment: what is held is a process, and it is a member if
        its pid still is one after that.
        """
        sent = 0
        listed = sorted(set(self.pids()) - set(spared))
        for at in range(0, len(listed), _AT_ONCE):
            with contextlib.ExitStack() as stack:
                held = dict(_held(stack, listed[at : at + _AT_ONCE]))
                for pid in held.keys() & set(self.pids()):
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(held[pid], number)
                        sent += 1
        return sent

    def _beneath(self, file: Path, key: str, at_least: int = 0) -> int:
        """The most that a container's own group was seen to count of what kernels count there and not above.

        Args:
            at_least: What there must have been if the group is gone.
        """
        groups = [one.path for one in os.scandir(file.parent) if one.is_dir()]
        seen = 0
        for group in groups:
            with contextlib.suppress(OSError):
                seen += keyed(read(Path(group, file.name))).get(key, 0)
        self._seen_beneath[key] = max(self._seen_beneath.get(key, 0), seen, 0 if groups else at_least)
        return self._seen_beneath[key]

    def end(self, timeout_s: float = 10.0) -> int:
        """Kill every member and wait until the group is empty; returns how many there were.

        Raises:
            StuckError: Members are left, stuck in the kernel.
        """
        members = self.pids()
        deadline = time.monotonic() + timeout_s
        pause_s = 0.0005
        while self.pids():
            self.kill()
            if time.monotonic() > deadline:
                raise StuckError(f"Processes {self.pids()} of {self.paths[0]} do not end.", "They may hang in the kernel.")
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)
        return len(members)

    def remove(self, timeout_s: float = 5.0) -> bool:
        """Remove the empty group; False if the kernel still holds it after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        for path in (folder for top in self.paths for folder in _deepest_first(top)):
            pause_s = 0.0002
            while True:
                try:
                    os.rmdir(path)
                except FileNotFoundError:
                    break
                except OSError as error:
                    # the kernel lets go of a dead process' membership a little after its parent reaped it
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        return False
                    time.sleep(pause_s)
                    pause_s = min(pause_s * 2, 0.02)
                else:
                    break
        return True


def _held(stack: contextlib.ExitStack, pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """A descriptor of each process that is there, which `stack` closes."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            stack.callback(os.close, fd)
            yield pid, fd


def write(path: Path | str, value: str) -> None:
    """Write one value to a control file, in one call, with the file's name in the error."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def read(path: Path) -> str:
    """The content of a control file, without the calls that opening a file as text takes: it is read many times a second."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _CONTROL_FILE_BYTES):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode().strip()


def keyed(text: str) -> dict[str, int]:
    """`memory.events` and its like: a name and a number a line."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def expect(what: str, path: Path, asked: float, found: float) -> Enforced:
    """The limit as read back from `path`; refuses any other value than the one asked.

    Raises:
        SandboxError: The kernel holds another value.
    """
    if abs(found - asked) > max(1e-6, abs(asked) * 1e-6):
        raise SandboxError(f"The {what} limit was set to {asked:g}, but {path} says {found:g}.")
    return Enforced(value=found, source=str(path))


def kill_pids(pids: Iterable[int]) -> None:
    """SIGKILL each of `pids` that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def page_rounded(count: int) -> int:
    """`count` bytes in whole pages, as the memory controller keeps it."""
    page = os.sysconf("SC_PAGE_SIZE")
    return count // page * page


def _members(folder: str) -> list[int]:
    try:
        with open(f"{folder}/cgroup.procs", "rb", buffering=0) as file:
            return [int(line) for line in file.readall().split()]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise


def _deepest_first(top: Path) -> list[str]:
    return [folder for folder, _, _ in os.walk(top, topdown=False)] or [os.fspath(top)]
