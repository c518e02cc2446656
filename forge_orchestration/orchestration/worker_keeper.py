"""The keeper of one run's worker: puts it into a group with limits before its first instruction, and writes down how it ended.

A process of its own, because whoever launches a run (a web server, the daemon) may be gone before the run has ended, and has
threads, so that it can neither fork nor move itself. It loads no Dagster. It never dies of what happens to its worker: it is
not in the worker's group, and an end for want of memory is told as such.

It reads an `Order` from standard input, and answers on standard output with one line: nothing when the worker has been
started and written down, or what is wrong.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

import msgspec

from forge_orchestration.errors import ForgeError, SandboxError
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.limits import Limits
from forge_orchestration.operations.workers import RUN_WORKER, Worker, WorkerEnd, WorkerFolder
from forge_orchestration.sandbox.cgroups.base import Cgroup
from forge_orchestration.sandbox.cgroups.find import find_site
from forge_orchestration.sandbox.process_identity import ProcessIdentity


@compiled
class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to start, and within what.

    Attributes:
        command: The worker's.
        stdin: What it reads. Not an argument: those are seen by every user of the host.
        cgroup_parent: As the settings have it.
        limits: Its grace is from the request to end (SIGTERM to the keeper) until the group is killed.
    """

    workers_dir: str
    run_id: str
    command: list[str]
    stdin: str
    cgroup_parent: str
    limits: Limits


def keep(order: Order) -> None:
    """Start the worker and stay until it has ended.

    Raises:
        ForgeError, OSError: It was not started, and nothing of it is there.
    """
    asked, wakeup = _hear_signals()
    folder = WorkerFolder(Path(order.workers_dir), order.run_id)
    site = find_site(order.cgroup_parent)
    site.enter("workers")
    group = site.worker(order.run_id)
    if group.pids():
        raise SandboxError(f"The group of run {order.run_id} is not empty: {group.pids()}.", "Is a worker of it running?")
    group.remove()  # of a worker whose keeper was killed
    group.create()
    try:
        group.set_limits(order.limits)
        pid = _start(order, folder, group)
    except BaseException:
        group.end()
        group.remove()
        raise
    _answer("")
    killed_after_s = _wait(pid, asked, wakeup, group, order.limits.grace_s)
    exit_code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    counters = group.counters()
    group.end()  # what the worker started and left
    peak = counters.peak_memory_bytes
    folder.ended(
        WorkerEnd(
            exit_code=exit_code, oom_kills=counters.oom_kills, killed_after_s=killed_after_s,
            peak_memory_bytes=peak.value if peak is not None else None,
        )
    )  # fmt: skip
    group.remove()


def _hear_signals() -> tuple[list[float], int]:
    """Moments at which an end was asked for, and a descriptor that becomes readable then."""
    asked: list[float] = []
    wakeup, end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(end)
    signal.signal(signal.SIGTERM, lambda *_: asked.append(time.monotonic()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return asked, wakeup


def _start(order: Order, folder: WorkerFolder, group: Cgroup) -> int:
    stdin = os.memfd_create("order")
    os.write(stdin, order.stdin.encode())
    os.lseek(stdin, 0, os.SEEK_SET)
    log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    go, gone = os.pipe2(os.O_CLOEXEC)
    if (pid := os.fork()) == 0:
        try:
            os.close(gone)
            for file in group.join_files:
                fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
                os.write(fd, b"0")
                os.close(fd)
            for source, target in ((stdin, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            if os.read(go, 1) == b"g":  # it is written down who it is
                os.execve(order.command[0], order.command, {**os.environ, RUN_WORKER: order.run_id})
        except OSError as error:
            os.write(2, f"The worker cannot be started: {error}.\n".encode())
        finally:
            os._exit(127)
    for fd in (stdin, log, go):
        os.close(fd)
    me = ProcessIdentity.of(pid)
    if me is None:
        raise SandboxError("The worker ended before it began.", f"See {folder.log}")
    folder.began(Worker(process=me, keeper=ProcessIdentity.of(os.getpid())))
    os.write(gone, b"g")
    os.close(gone)
    return pid


def _wait(pid: int, asked: list[float], wakeup: int, group: Cgroup, grace_s: float) -> float | None:
    """Until the worker has ended; returns the grace after which its group was killed, if it was."""
    ended = os.pidfd_open(pid)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    waiting.register(wakeup, select.POLLIN)
    passed_on = 0
    killed_after_s = None
    while True:
        left_s = asked[0] + grace_s - time.monotonic() if asked and killed_after_s is None else None
        events = [fd for fd, _ in waiting.poll(None if left_s is None else max(0.0, left_s) * 1000)]
        if ended in events:
            os.close(ended)
            return killed_after_s
        if wakeup in events:
            os.read(wakeup, 4096)
        if len(asked) > passed_on:
            passed_on = len(asked)
            signal.pidfd_send_signal(ended, signal.SIGTERM)
        elif left_s is not None and left_s <= 0:
            killed_after_s = grace_s
            group.kill()


def _answer(said: str) -> None:
    os.write(1, said.encode() + b"\n")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # whoever asked need not be there any longer
        os.dup2(null, fd)


def main() -> None:
    """Entry point of the process."""
    os.setsid()
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    try:
        keep(order)
    except (ForgeError, OSError) as error:
        _answer(" ".join(str(error).split()))
