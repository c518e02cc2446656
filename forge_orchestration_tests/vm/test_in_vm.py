"""The sandbox, security and fault tests in a virtual machine with systemd and cgroup v2, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from forge_orchestration_tests.conftest import prerequisite

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = "integration/test_limits.py integration/test_executions.py integration/test_admission.py "
TESTS += "integration/test_precedence.py integration/test_accuracy.py security faults"
# a processor emulated in software is some ten times slower: figures of time are not judged there
DESELECTED = "not cpu_quota and not main_job and not 64 and not processor_time and not quota_of_one and not without_grace"
TIMEOUT_S = 2400


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 900)
def test_limits_security_and_faults_on_cgroup_v2() -> None:
    prerequisite(os.geteuid() == 0 or shutil.which("qemu-system-x86_64"), "building the virtual machine needs root")
    paths = " ".join(f"forge_orchestration_tests/{one}" for one in TESTS.split())
    command = f"cd /opt/project && python -m pytest -p no:cacheprovider --timeout 900 -k '{DESELECTED}' {paths}"
    steps = [{"user": user, "command": f"forge doctor && {command}"} for user in ("root", "newcomer")]
    run = [sys.executable, str(Path(__file__).with_name("run-in-vm")), "--steps", "-", "--timeout", str(TIMEOUT_S)]
    run += ["--lock", str(REPOSITORY / "requirements-dev.lock"), str(REPOSITORY)]
    done = subprocess.run(run, input=json.dumps(steps), stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    assert done.stdout.count(" passed") == len(steps)
