"""Starting the spawner, with as little as possible loaded: the command line does it first and loads everything else meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading

_PASSED_ON = ("PATH", "HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "LD_LIBRARY_PATH")
_package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# without the collector, until `spawner.serve`: what is loaded stays, and need not be looked through again and again
# -I: nothing of the caller's Python environment (PYTHONPATH, user site, current folder) reaches trusted code
SPAWNER = (
    sys.executable, "-I", "-c",
    f"import gc, sys; gc.disable(); sys.path.insert(0, {_package_root!r}); from forge_orchestration.sandbox.spawner import main; main()",
)  # fmt: skip
_early: SpawnerProcess | None = None
_lock = threading.Lock()


class SpawnerProcess:
    """A spawner that has been started, and the socket that is its standard input.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.owner = os.getpid()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0), (os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # a session of its own: Ctrl-C at the terminal is for the controller, which ends executions with their grace;
        # and no signal that the controller ignores or blocks is ignored or blocked there
        try:
            self.pid = os.posix_spawn(
                sys.executable, SPAWNER, environment, file_actions=actions, setsid=True, setsigmask=(),
                setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD),
            )  # fmt: skip
        finally:
            theirs.close()
            os.close(null)

    def is_alive(self) -> bool:
        """Whether it still runs, as a child of this very process (a forked copy of a controller has none)."""
        if self.owner != os.getpid():
            return False
        try:
            return os.waitpid(self.pid, os.WNOHANG) == (0, 0)
        except ChildProcessError:
            return False

    def close(self) -> None:
        """End it, by closing its socket, and reap it."""
        self.socket.close()
        if self.owner == os.getpid():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)


def start_early() -> None:
    """Start one for `take_spawner` to find."""
    global _early
    with contextlib.suppress(OSError):  # take_spawner will say so
        _early = SpawnerProcess()


def take_spawner() -> SpawnerProcess:
    """The one that was started early, or a new one.

    Raises:
        OSError: It cannot be started.
    """
    global _early
    with _lock:
        started, _early = _early, None
    return started if started is not None and started.is_alive() else SpawnerProcess()
