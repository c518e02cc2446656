"""A process that hangs in the kernel: nothing of its execution is given back before it has ended, and everybody is told."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from pathlib import Path

from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.sandbox.identity import claims
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration_tests.conftest import Forge, leftovers, prerequisite, wait_until

_FREEZE, _THAW = 0xC0045877, 0xC0045878
PATIENCE_S = 90


def test_what_hangs_in_the_kernel_keeps_what_is_its_own(other_forge: Forge) -> None:
    """Writing to a frozen file system cannot be interrupted, not even by SIGKILL."""
    prerequisite(os.geteuid() == 0, "freezing a file system needs root")
    forge = other_forge
    writing = "echo up; while true; do echo x >> more; done"
    with forge.started("exec", "--grace", "0s", "--memory", "64MiB", "--", "sh", "-c", writing) as process:
        assert process.stdout.readline() == "up\n"
        (one,) = forge.executions()
        supervisor = read_supervisor(ExecutionFolder(forge.home / "executions", one))
        assert supervisor is not None
        workspace = os.open(f"/proc/{supervisor.pid}/root{forge.home}/scratch/workspace", os.O_RDONLY)
        fcntl.ioctl(workspace, _FREEZE, 0)
        try:
            process.send_signal(signal.SIGTERM)
            wait_until("the record to say so", lambda: forge.read_record(one).status == "collecting", PATIENCE_S)
            record = forge.read_record(one)
            assert "hang" in record.message or "does not end" in record.message or "do not end" in record.message, record.message
            assert supervisor.is_alive and process.poll() is None
            assert one in claims().values()
            assert Path(record.enforced["pids"].source).parent.is_dir()
            doctor = {line["name"]: line for line in json.loads(forge("doctor", "--json").stdout)}["stuck"]
            assert not doctor["passed"] and one in doctor["finding"], doctor
        finally:
            fcntl.ioctl(workspace, _THAW, 0)
            os.close(workspace)
        process.communicate(timeout=PATIENCE_S)
    record = forge.read_record(one)
    assert record.end_reason == "canceled" and record.cleanup.cgroup_removed, record
    assert one not in claims().values()
    wait_until("nothing to be left", lambda: not leftovers(forge.home))
    assert {line["name"]: line["passed"] for line in json.loads(forge("doctor", "--json").stdout)}["stuck"]
