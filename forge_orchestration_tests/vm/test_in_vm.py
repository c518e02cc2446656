"""What is tested in a virtual machine with systemd and cgroup v2, as each of the three who may start executions.

root has the host, `forge` is a service user with ids of its own and a delegated service, `newcomer` an ordinary user. It has ids set
aside too, and is made to do without them, but where the power goes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forge_orchestration_tests.conftest import prerequisite

REPOSITORY = Path(__file__).resolve().parents[2]
USERS = ("root", "forge", "newcomer")
ALONE = dict.fromkeys(USERS, "") | {"newcomer": "sudo chmod a-x /usr/bin/newuidmap && "}
LIMITS = "integration/test_limits.py"
WHOLE = f"{LIMITS} integration/test_executions.py integration/test_admission.py integration/test_precedence.py "
WHOLE += "integration/test_accuracy.py security faults "
# it is of files alone, and its packages cannot be fetched there
WHOLE += "--ignore forge_orchestration_tests/faults/test_runtime_damage.py"
# a processor emulated in software is some ten times slower: figures of time are not judged there
DESELECTED = "not cpu_quota and not main_job and not 64 and not processor_time and not quota_of_one and not without_grace "
DESELECTED += "and not refused_calls_without_end "
# it loses itself in a segment of 32 bits: the kernel ends the program with an oops, whether it is filtered or not
DESELECTED += "and not foreign_segment"
NOT_BUILT = 125
PATIENCE = "FORGE_TESTS_PATIENCE=5"


@pytest.mark.timeout(3000)
def test_twenty_attacks_and_every_limit() -> None:
    """The attacks as who has least to stand on, the limits as who can set all of them; the whole for each is `make test-all`."""
    steps = {"root": _tests(LIMITS), "forge": _tests("-m smoke security"), "newcomer": "true"}
    said = in_vm([{"user": user, "command": f"{ALONE[user]}forge doctor && {command}"} for user, command in steps.items()], 2400)
    assert said.count(" passed") == 2, said[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(15000)
@pytest.mark.parametrize("user", USERS)
def test_limits_security_and_faults(user: str) -> None:
    assert in_vm([{"user": user, "command": ALONE[user] + _tests(WHOLE)}], 14000).count(" passed") == 1


@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_the_power_goes_while_executions_run() -> None:
    command = f"{PATIENCE} python -m forge_orchestration_tests.vm.power"
    users = ("root", "newcomer", "forge")  # a service ends with all that it runs: this one does not end
    steps: list[dict[str, object]] = [{"user": user, "command": f"cd /opt/project && {command} before"} for user in users]
    steps[-1] |= {"command": f"{steps[-1]['command']} && echo now && sleep 3600", "power_off": "ready to lose power\nnow"}
    steps += [{"user": user, "command": f"cd /opt/project && {command} after"} for user in USERS]
    assert in_vm(steps, 2400).count("nothing was lost, and nothing is left") == len(USERS)


def _tests(*selections: str) -> str:
    """A command that runs each selection, whose paths lie beneath this package.

    Hundreds of rounds of what is in samples here are for machines that are not emulated.
    """
    package = "forge_orchestration_tests"
    runs = []
    for selection in selections:
        paths = [
            word if word.startswith(("-", "forge_orchestration_tests")) or word == "smoke" else f"{package}/{word}"
            for word in selection.split()
        ]
        runs.append(
            f"{PATIENCE} FORGE_TESTS_OWN_CLOCK=1 python -m pytest -p no:cacheprovider --timeout 900 --durations 40"
            f" -m 'not slow' -k '{DESELECTED}' {' '.join(paths)}"
        )
    return f"cd /opt/project && {' && '.join(runs)}"


def in_vm(steps: list[dict[str, object]], timeout_s: int) -> str:
    """What the steps print. They must all end well."""
    run = [sys.executable, str(Path(__file__).with_name("run-in-vm")), "--steps", "-", "--timeout", str(timeout_s)]
    run += ["--lock", str(REPOSITORY / "requirements-dev.lock"), str(REPOSITORY)]
    done = subprocess.run(run, input=json.dumps(steps), capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == NOT_BUILT:
        prerequisite(os.geteuid() == 0, f"there is no virtual machine: {done.stderr[-1000:]}")
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0, (done.stdout[-6000:], done.stderr[-2000:])
    return done.stdout
