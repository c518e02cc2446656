"""The spawner: a small single-threaded process that a controller starts once, and that forks a supervisor an execution.

Controllers are large and have threads (a Dagster run worker, a web server): forking them is slow and unsafe. This process has
loaded what a supervisor needs and nothing else, so a supervisor costs one cheap fork. It ends with its controller; the
supervisors do not.

Protocol, on a sequenced-packet socket that is its standard input: it says `ready` and the cgroup site, or `error` and why;
then each packet is the folder of one execution, with a socket for the supervisor to talk to the controller.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from forge_orchestration.errors import ForgeError
from forge_orchestration.sandbox import seccomp
from forge_orchestration.sandbox.cgroups.find import Greeting, find_site
from forge_orchestration.sandbox.plan import LaunchPlan
from forge_orchestration.sandbox.supervisor import Supervisor


def serve(control: socket.socket, configured_parent: str) -> None:
    """Fork a supervisor for every request until the controller is gone."""
    try:
        site = find_site(configured_parent)
        site.enter()
        seccomp.filter_program()
    except ForgeError as error:
        greeting = Greeting(error=error.message, hint=error.hint, exit_code=error.exit_code)
        control.send(msgspec.json.encode(greeting))
        return
    gc.collect()
    gc.freeze()  # a forked supervisor then writes to few of the shared pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors: the kernel reaps them
    control.send(msgspec.json.encode(Greeting(site=site)))
    while True:
        folder, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        if not folder:
            return
        if os.fork() == 0:
            control.close()
            _supervise(Path(os.fsdecode(folder)), socket.socket(fileno=descriptors[0]))
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(folder: Path, controller: socket.socket) -> None:
    try:
        os.setsid()
        os.chdir("/")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=LaunchPlan)
        Supervisor(plan, controller).run()
    finally:
        os._exit(0)


def main() -> None:
    """Entry point of the process."""
    # a second descriptor, so that nothing that writes to standard input or output can disturb the protocol
    control = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    serve(control, sys.argv[1] if len(sys.argv) > 1 else "")
