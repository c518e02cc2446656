"""The spawner: a small single-threaded process that a controller starts once, and that forks a supervisor an execution.

Controllers are large and have threads (a Dagster run worker, a web server): forking them is slow and unsafe. This process has
loaded what a supervisor needs and nothing else, so a supervisor costs one cheap fork. It ends with its controller; the
supervisors do not.

Protocol, on a sequenced-packet socket that is its standard input: the controller says `Hello`, the spawner answers with a
`Greeting`; then each packet is the folder of one execution, with a socket for the supervisor to talk to the controller.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from pathlib import Path

import msgspec

from forge_orchestration.errors import ForgeError
from forge_orchestration.model.record import record_from_json
from forge_orchestration.sandbox import linux, seccomp, subordinate
from forge_orchestration.sandbox.cgroups.find import Greeting, find_site, scope_prefix
from forge_orchestration.sandbox.entry import Entrant
from forge_orchestration.sandbox.plan import LaunchPlan, plan_from_json, read_plan
from forge_orchestration.sandbox.sandboxed import SandboxSupervisor
from forge_orchestration.sandbox.scratch import forget_workspaces
from forge_orchestration.sandbox.spawn import SPAWNER
from forge_orchestration.sandbox.standby import Hello, Prepared, prepare_ahead
from forge_orchestration.sandbox.supervisor import Supervisor

_IN_SCOPE = "--in-scope"
_HEAD_START_MS = 50


def serve(control: socket.socket, hello: Hello) -> None:
    """Fork a supervisor for every request until the controller is gone."""
    try:
        site = find_site(hello.parent)
        site.enter()
        subordinate.enter_if_wanted(hello.identity)
        _warm_up(hello)
    except ForgeError as error:
        greeting = Greeting(error=error.message, hint=error.hint)
        control.send(msgspec.json.encode(greeting))
        return
    gc.freeze()  # a forked supervisor then writes to few of the shared pages
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors: the kernel reaps them
    control.send(msgspec.json.encode(Greeting(site=site)))
    while True:
        pid, standby = _fork_standby(control, hello)  # ahead of the request, off its path
        folder, descriptors = _received(control)
        if not folder:
            return
        try:
            try:
                socket.send_fds(standby, [folder], descriptors)
            except BrokenPipeError:  # it was killed while it stood by
                standby.close()
                pid, standby = _fork_standby(control, hello)
                socket.send_fds(standby, [folder], descriptors)
        finally:
            standby.close()
            for descriptor in descriptors:
                os.close(descriptor)
        _give_way(control, pid)


def _give_way(control: socket.socket, supervisor: int) -> None:
    """Let the execution that starts now have the processors, until it runs or has ended, or another request waits already."""
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    try:
        ended = os.pidfd_open(supervisor)
    except ProcessLookupError:
        return
    waiting.register(ended, select.POLLIN)
    waiting.poll(_HEAD_START_MS)
    os.close(ended)


def _fork_standby(control: socket.socket, hello: Hello) -> tuple[int, socket.socket]:
    """A supervisor that waits for its execution: its pid, and the socket to give it one. It ends if that is closed without."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if (pid := os.fork()) == 0:
        try:
            control.close()
            ours.close()
            _supervise(theirs, hello)
        finally:
            os._exit(0)
    theirs.close()
    return pid, ours


def _supervise(spawner: socket.socket, hello: Hello) -> None:
    os.setsid()
    os.chdir("/")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if os.geteuid() == 0 and not hello.contained:
        linux.unshare_mounts()
        forget_workspaces(Path(hello.scratch_dir))
    entrant = None if hello.contained else Entrant()  # before there is a claim and an image, which it would hold too
    ahead = prepare_ahead(hello)
    linux.own_memory()
    folder, descriptors = _received(spawner)
    spawner.close()
    if folder:
        os.set_inheritable(descriptors[0], False)  # the controller is to hear the end of this process, not that of its last helper
        plan = read_plan(Path(os.fsdecode(folder)))
        controller = socket.socket(fileno=descriptors[0])
        _supervisor(plan, controller, entrant, ahead).run()
    elif ahead is not None:
        ahead.release(ended=True)


def _supervisor(plan: LaunchPlan, controller: socket.socket, entrant: Entrant | None, ahead: Prepared | None) -> Supervisor:
    if entrant is not None:
        return SandboxSupervisor(plan, controller, entrant, ahead)
    from forge_orchestration.sandbox.contained import ContainerSupervisor  # loaded by `_warm_up`

    return ContainerSupervisor(plan, controller, ahead)


def _received(sender: socket.socket) -> tuple[bytes, list[int]]:
    """One packet and its descriptors, which no program that is started later inherits."""
    packet, descriptors, _, _ = socket.recv_fds(sender, 4096, 1)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return packet, descriptors


def _warm_up(hello: Hello) -> None:
    """Do once what each supervisor would otherwise do anew: compile the filter, and the decoders of plan and record."""
    if hello.contained:
        from forge_orchestration.sandbox import contained  # noqa: F401
    else:
        seccomp.filter_program()
        seccomp.refused_names()
    linux.warm_up()
    for decode, kind in ((plan_from_json, "plan"), (record_from_json, "record")):
        try:
            decode(b"{}")
        except msgspec.ValidationError:
            continue
        raise AssertionError(f"an empty {kind} was taken")


def main() -> None:
    """Entry point of the process. Where systemd is to delegate a group, it starts itself again in a scope of its own."""
    os.closerange(3, 1 << 20)  # what the caller's shell left open
    if sys.argv[1:2] == [_IN_SCOPE]:
        hello = msgspec.json.decode(sys.argv[2], type=Hello)
    else:
        packet = os.read(0, 1 << 16)
        if not packet:
            return
        hello = msgspec.json.decode(packet, type=Hello)
        if prefix := scope_prefix(hello.parent):
            command = (*prefix, *SPAWNER, _IN_SCOPE, packet.decode())
            os.execvp(command[0], command)
    # a second descriptor, so that nothing that writes to standard input or output can disturb the protocol
    control = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    serve(control, hello)
