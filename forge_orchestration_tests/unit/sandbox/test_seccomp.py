"""The system call filter, loaded into this kernel: each refused call is refused, what analyses need is not."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys

import pytest

from forge_orchestration.errors import HostError
from forge_orchestration.sandbox import seccomp
from forge_orchestration_tests.conftest import prerequisite

# loads the filter as the entry does, makes each call with arguments that would fail in another way or not at all, and counts in a
# thread that was there before the filter, and so is not under it
PROBE = """
import ctypes, errno, json, os, sys, threading, queue, select
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.seccomp import filter_program
from forge_orchestration.sandbox.violations import Violations
import pyseccomp
program = filter_program()
libc = ctypes.CDLL(None, use_errno=True)
wanted = json.loads(sys.argv[1])
numbers = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name, _ in wanted}
handed, counted = queue.Queue(), {}
def count():
    violations = Violations(handed.get())
    while handed.empty():
        select.select([violations.listener], [], [], 0.05)
        violations.answer()
    counted.update(violations.counts)
thread = threading.Thread(target=count)
thread.start()
linux.set_no_new_privileges()
handed.put(linux.install_filter(program))
said = []
for name, arguments in wanted:
    if numbers[name] < 0:
        said.append("absent")
        continue
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(numbers[name]), *(ctypes.c_long(one) for one in arguments))
    said.append("done" if result >= 0 else errno.errorcode[ctypes.get_errno()])
    if name in ("clone",) and result == 0:
        os._exit(0)
handed.put(None)
thread.join()
assert sum(counted.values()) == said.count("EPERM"), (counted, said)
assert all(counted.get(name, 0) for (name, _), word in zip(wanted, said) if word == "EPERM"), (counted, said)
print(json.dumps(said))
"""


def ask(*calls: tuple[str, list[int]]) -> list[str]:
    prerequisite(ctypes.util.find_library("seccomp") or _loads(), "libseccomp is not installed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(calls)], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _loads() -> bool:
    try:
        seccomp.filter_program()
    except HostError:
        return False
    return True


@pytest.mark.parametrize("group", seccomp.REFUSED)
def test_every_call_of_the_list_is_refused(group: str) -> None:
    """With arguments of -1, which no kernel accepts: EPERM comes from the filter, before the kernel looks at them."""
    calls = seccomp.REFUSED[group]
    answers = dict(zip(calls, ask(*((call, [-1] * 6) for call in calls)), strict=True))
    assert set(answers.values()) <= {"EPERM", "absent"}, answers


def test_what_the_issue_names_is_in_the_list() -> None:
    refused = {call for calls in seccomp.REFUSED.values() for call in calls}
    assert {
        "unshare", "setns", "mount", "umount2", "pivot_root", "ptrace", "process_vm_readv", "keyctl", "add_key", "request_key", "bpf",
        "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "perf_event_open", "kexec_load", "init_module",
    } <= refused  # fmt: skip


@pytest.mark.parametrize("flag", [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000])
def test_clone_makes_no_namespace(flag: int) -> None:
    assert ask(("clone", [flag | 17, 0, 0, 0, 0])) == ["EPERM"]


def test_clone3_says_that_it_is_not_there_so_that_programs_use_clone() -> None:
    assert ask(("clone3", [0, 0])) == ["ENOSYS"]


@pytest.mark.parametrize(
    ("family", "protocol"),
    [(17, 0), (38, 0), (40, 0), (44, 0), (31, 0), (30, 0), (3, 0), (15, 0), (16, 1), (16, 9), (16, 15), (16, 2**32 - 1),
     (2**32 + 40, 0), (2**32 + 3, 0), (2**32 + 16, 9)],
)  # fmt: skip
def test_sockets_of_no_use_are_refused(family: int, protocol: int) -> None:
    assert ask(("socket", [family, 3, protocol])) == ["EPERM"]


@pytest.mark.parametrize(("family", "kind"), [(1, 1), (2, 1), (10, 2), (16, 3)])
def test_ordinary_sockets_work(family: int, kind: int) -> None:
    assert ask(("socket", [family, kind, 0]))[0] in ("done", "EAFNOSUPPORT")


@pytest.mark.parametrize("request_number", [0x5412, 0x541C, 0x5412 | 1 << 32])
def test_characters_cannot_be_pushed_into_a_terminal(request_number: int) -> None:
    """The kernel looks at the lower 32 bits only, and so must the filter."""
    assert ask(("ioctl", [0, request_number, 0])) == ["EPERM"]


def test_what_programs_need_is_allowed() -> None:
    answers = ask(("getpid", []), ("ioctl", [-1, 0x5413, 0]), ("membarrier", [0, 0, 0]), ("futex", [0, 0, 0, 0, 0, 0]))
    assert "EPERM" not in answers and answers[0] == "done"


def test_a_core_limit_says_that_it_was_set_and_is_not() -> None:
    """0 in place of the 1 of the entry would hand a core to a host's handler that is a pipe."""
    script = (
        "import resource; from forge_orchestration.sandbox import linux, seccomp; resource.setrlimit(4, (1, 1)); "
        "linux.set_no_new_privileges(); linux.install_filter(seccomp.filter_program()); "
        "resource.setrlimit(4, (0, 0)); resource.prlimit(0, 4, (0, 0)); print(resource.getrlimit(4), resource.prlimit(0, 4))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout == "(1, 1) (1, 1)\n", done.stderr
