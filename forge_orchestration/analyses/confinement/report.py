"""Report what an analysis sees and may do in its sandbox.

Forge's record says what was set up and read back from outside. This is the other half: the same facts as the program
inside finds them, from its own ``/proc`` and by trying. It judges nothing, since what is right depends on the policy;
it needs no privilege, leaves nothing behind, and also runs outside a sandbox, for comparison.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

MAX_HOLD_S = 600.0

NOT_ROUTED = "192.0.2.1"
"""An address kept free for documentation (RFC 5737): nobody answers there, and no host is bothered."""

STATUS_LINES = ("Umask", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Cpus_allowed_list")


class ReportError(Exception):
    """A parameter or variable is not what this analysis needs; the message is one sentence."""


class Messages:
    """Sends progress as JSON lines to ``$FORGE_MESSAGES``; does nothing where that is unset.

    Every line is one ``write`` of less than 4096 bytes, which a FIFO takes whole. A reader that went away costs the
    progress display and not the report: the first error is told on stderr and nothing is sent after it.
    """

    def __init__(self, path: str | None) -> None:
        self._descriptor: int | None = None
        if path:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Messages:
        self._send({"type": "opened"})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Also after an error: an analysis that failed with a sentence has ended in order.
        self._send({"type": "closed"})
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def progress(self, fraction: float, message: str) -> None:
        self._send({"type": "progress", "fraction": round(fraction, 3), "message": message})

    def log(self, message: str, level: str = "info") -> None:
        self._send({"type": "log", "level": level, "message": message[:1000]})

    def metadata(self, values: dict[str, int | float | str]) -> None:
        self._send({"type": "metadata", "values": values})

    def _send(self, message: dict[str, Any]) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")
        except OSError as error:
            print(f"No progress is sent from here on: {error}", file=sys.stderr, flush=True)
            os.close(self._descriptor)
            self._descriptor = None


def attempt(action: Callable[[], object]) -> str:
    """Try something; return ``"yes"``, or ``"no: "`` with the kernel's reason."""
    try:
        action()
    except OSError as error:
        if error.errno is None:  # a timeout of Python's own
            return f"no: {error}"
        return f"no: {errno.errorcode.get(error.errno, error.errno)} ({error.strerror})"
    return "yes"


def write_into(folder: Path) -> None:
    """Make an empty file and remove it again; ``os.access`` knows nothing of seccomp or Landlock."""
    name = folder / f".forge-confinement-{os.getpid()}"
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.close(descriptor)
    name.unlink()


def read_byte(path: Path) -> None:
    with path.open("rb") as file:
        file.read(1)


def connect_to_itself() -> None:
    """Open a TCP connection over the loopback interface to a listener of our own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        socket.create_connection(listener.getsockname(), timeout=2).close()


def connect_outside() -> None:
    """Try to leave: without a network this is refused at once, with one it times out, since nobody answers."""
    socket.create_connection((NOT_ROUTED, 9), timeout=1).close()


def text_of(path: str) -> str:
    """Read a file of ``/proc``; where the sandbox hides it, that is what is reported."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        return f"unreadable: {error.strerror}\n"


def mounts() -> list[dict[str, str]]:
    """Return the mount table: where, what (with the host's names, as far as the kernel tells them), and how."""
    table = []
    for line in text_of("/proc/self/mountinfo").splitlines():
        before, separator, after = line.partition(" - ")
        mount, filesystem = before.split(), after.split()
        if not separator or len(mount) < 6 or len(filesystem) < 3:
            continue
        table.append(
            {
                "path": mount[4],
                "type": filesystem[0],
                "source": filesystem[1],
                "source_path": mount[3],
                "options": mount[5],
                "filesystem_options": filesystem[2],
            }
        )
    return table


def status() -> dict[str, str]:
    """Return umask, identity, capability sets, ``NoNewPrivs`` and ``Seccomp`` of this process."""
    lines = (line.partition(":") for line in text_of("/proc/self/status").splitlines())
    return {key: value.strip() for key, _, value in lines if key in STATUS_LINES or key.startswith("Cap")}


def processes() -> list[dict[str, Any]]:
    """Return every process that is visible, with its name; in a process namespace of one's own they are few."""
    numbers = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [{"pid": number, "name": text_of(f"/proc/{number}/comm").strip()} for number in numbers]


def network() -> dict[str, Any]:
    """Return the interfaces, by two ways of asking, and what can be reached."""
    try:
        interfaces: Any = [name for _, name in socket.if_nameindex()]
    except OSError as error:  # netlink sockets may be refused
        interfaces = f"unreadable: {error.strerror}"
    return {
        "interfaces": interfaces,
        "proc_net_dev": [line.partition(":")[0].strip() for line in text_of("/proc/net/dev").splitlines() if ":" in line],
        "loopback": attempt(connect_to_itself),
        "outside": attempt(connect_outside),
    }


def limits() -> dict[str, Any]:
    """Return the resource limits of this process (null: none) and the processors that it may use."""
    names = sorted(name for name in vars(resource) if name.startswith("RLIMIT_"))

    def pair(name: str) -> list[int | None]:
        return [None if v == resource.RLIM_INFINITY else v for v in resource.getrlimit(getattr(resource, name))]

    return {"cpus": sorted(os.sched_getaffinity(0)), **{name: pair(name) for name in names}}


def report() -> dict[str, Any]:
    """Look around and try; see the module's docstring."""
    analysis = Path(os.environ.get("FORGE_ANALYSIS", "/forge/analysis"))
    inputs = Path(os.environ.get("FORGE_INPUTS", "/forge/inputs"))
    folders = {
        "/": Path("/"),
        "/usr": Path("/usr"),
        "/etc": Path("/etc"),
        "/tmp": Path("/tmp"),
        "/dev/shm": Path("/dev/shm"),
    }
    folders |= {"analysis": analysis, "inputs": inputs, "runtime": Path(sys.prefix), "working_folder": Path.cwd()}
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "hostname": platform.node(),
        "identity": {"uid": list(os.getresuid()), "gid": list(os.getresgid()), "groups": os.getgroups()},
        "session": {"pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0)},
        "status": status(),
        "limits": limits(),
        "cgroup": text_of("/proc/self/cgroup").splitlines(),
        "environment": dict(sorted(os.environ.items())),
        "mounts": mounts(),
        "root": sorted(entry.name for entry in Path("/").iterdir()),
        "processes": processes(),
        "network": network(),
        "can_write": {name: attempt(lambda path=path: write_into(path)) for name, path in folders.items()},
        "can_read": {path: attempt(lambda path=path: read_byte(Path(path))) for path in ("/etc/shadow", "/etc/passwd")},
    }


def read_hold_s() -> float:
    """Read the only parameter: how long to stay alive at the end, in seconds."""
    path = os.environ.get("FORGE_PARAMS")
    if not path:
        return 0.0
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
        hold_s = float(given.get("hold_s", 0))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ReportError(f"The parameters cannot be read: {error}.") from None
    if not (math.isfinite(hold_s) and 0 <= hold_s <= MAX_HOLD_S):
        raise ReportError(f"hold_s is {hold_s}; it must lie between 0 and {MAX_HOLD_S:g} seconds.")
    return hold_s


def hold(seconds: float, messages: Messages) -> None:
    """Stay alive and say so every second."""
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds:
        messages.progress(elapsed / seconds, f"holding: {elapsed:.0f} of {seconds:g} s")
        time.sleep(min(1.0, seconds - elapsed))


def run(messages: Messages) -> None:
    hold_s = read_hold_s()
    outputs = os.environ.get("FORGE_OUTPUTS")
    if not outputs:
        raise ReportError("The environment variable FORGE_OUTPUTS is not set.")
    seen = report()
    text = json.dumps(seen, indent=2)  # ASCII only: names of files and variables can be any bytes
    print(text, flush=True)
    (Path(outputs) / "report.json").write_text(text + "\n", encoding="ascii")
    messages.metadata(
        {
            "mounts": len(seen["mounts"]),
            "processes": len(seen["processes"]),
            "uid": seen["identity"]["uid"][0],
            "capabilities": seen["status"].get("CapEff", "unknown"),
            "no_new_privs": seen["status"].get("NoNewPrivs", "unknown"),
            "seccomp": seen["status"].get("Seccomp", "unknown"),
        }
    )
    if hold_s:
        hold(hold_s, messages)
    messages.progress(1.0, "done")


def main() -> int:
    with Messages(os.environ.get("FORGE_MESSAGES")) as messages:
        try:
            run(messages)
        except ReportError as error:
            print(error, file=sys.stderr)
            messages.log(str(error), level="error")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
