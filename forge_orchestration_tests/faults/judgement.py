"""What must hold after a round and its reconciliation: nothing is left, nothing is lost, every record is final and true."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from forge_orchestration.engine import Engine
from forge_orchestration.errors import HostError
from forge_orchestration.executors.recovery import Reconciled
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.operations.reconcile import reconcile
from forge_orchestration.sandbox.identity import claims
from forge_orchestration.sandbox.orphans import orphans
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import Forge, leftovers
from forge_orchestration_tests.faults import victims
from forge_orchestration_tests.faults.rounds import CONTENT, OUTPUTS, WORK, Controller, Round

_ENDING_S = 10.0
_BEGUN = (Status.RUNNING, Status.COLLECTING)


def judge(played: Round, forge: Forge) -> None:
    """Look at everything that the executions of a round left.

    Raises:
        AssertionError: Something is not as it must be.
    """
    ids = played.executions()
    records = {one: forge.read_record(one) for one in ids}
    rows = {row["execution_id"]: row for row in json.loads(forge("executions", "list", "--limit", "1000", "--json").stdout)}
    assert rows.keys() - played.before == ids, "a row without a folder, or a folder without a row"
    for one, record in records.items():
        assert record.status.is_final, f"{one} is {record.status}\n{_said(played)}"
        assert (rows[one]["status"], rows[one]["end_reason"]) == (record.status, record.end_reason), one
        possible = _possible_ends(played, record)
        assert record.end_reason in possible, f"{one}: {record.end_reason} is none of {possible}: {record.message}\n{_said(played)}"
        _judge_outputs(record)
        assert not [name for name in os.listdir(record.folder) if name.startswith(".")], "files half-written"
    for controller in played.controllers:
        _judge_controller(played, controller, records)
    nothing_left("of a round", lambda: leftovers(played.home) + of_dead_supervisors(played.home))
    report = reconcile(Engine(load_settings(played.home)))
    # others on this host may have killed supervisors of their own meanwhile; and a place that was all that a killed controller left
    # is dropped when the next execution has to wait
    report.removed = [line for line in report.removed if not line.startswith(("claim", "place")) and "helpers" not in line]
    assert report == Reconciled(), f"something was left for another look: {report}"


def nothing_left(what: str, look: Callable[[], list[str]]) -> None:
    """What the kernel takes back a moment after an end is not left; what stays is."""
    deadline = time.monotonic() + _ENDING_S
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found == [], f"left {what}: {found}"


def of_dead_supervisors(home: Path) -> list[str]:
    """Claims and helpers that name no execution."""
    found = []
    for uid, holder in claims().items():
        if (dead := re.fullmatch(r"standby (\d+)", holder)) and not Path(f"/proc/{dead[1]}").exists():
            found.append(f"claim on uid {uid} by dead {holder}")
    try:
        found += [f"helper {pid} of a dead supervisor" for pid in orphans(victims.site_of(home))]
    except HostError:
        pass  # a host where groups are made in scopes, which end with what is in them
    return found


def _possible_ends(played: Round, record: ExecutionRecord) -> set[EndReason]:
    """As what it may have ended, by what was killed of it, and when."""
    pid = victims.controller_of(played.home, record.execution_id)
    controller = next(one for one in played.controllers if one.process and one.process.pid == pid)
    natural = WORK[controller.work][1]
    ends = {natural} if natural else {EndReason.CANCELED} if controller.canceled else set()
    for hit in (hit for hit in played.hits if hit.controller == pid):
        victim = hit.kill.victim
        if victim == "controller":
            ends.add(EndReason.CONTROLLER_LOST)
        elif victim in ("spawner", "standby"):
            ends.add(EndReason.EXECUTOR_ERROR)  # of those that were just being started
        elif hit.execution_id != record.execution_id or (hit.status and hit.status.is_final):
            continue
        elif victim == "supervisor":
            ends.add(EndReason.EXECUTOR_ERROR)
        elif victim == "analysis":
            ends |= {EndReason.SIGNALED, natural or EndReason.NONZERO_EXIT, EndReason.NONZERO_EXIT}
        else:
            # the end of the sandbox and that of the command come at once, and either can be heard first
            ends |= {EndReason.SIGNALED, EndReason.EXECUTOR_ERROR}
        if victim not in ("controller", "spawner", "standby", "supervisor") and hit.status not in _BEGUN:
            ends |= {EndReason.SANDBOX_UNAVAILABLE, EndReason.EXECUTOR_ERROR}
    return ends


def _judge_outputs(record: ExecutionRecord) -> None:
    folder = Path(record.folder, "outputs")
    for output in record.outputs:
        content = (folder / output.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (output.bytes, output.sha256), output
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {output.path for output in record.outputs}, "a file that the record does not know, or the reverse"
    assert all((folder / name).read_bytes() == CONTENT for name in there - {"part"}), "half an output"
    if record.succeeded and "FORGE_OUTPUTS" in record.command[-1]:
        assert len(there) == OUTPUTS


def _judge_controller(played: Round, controller: Controller, records: dict[str, ExecutionRecord]) -> None:
    """A command that was not killed has told how its execution ended."""
    process = controller.process
    assert process is not None
    hits = [hit for hit in played.hits if hit.controller == process.pid]
    if controller.count != 1 or any(hit.kill.victim == "controller" for hit in hits):
        return
    if controller.canceled and process.returncode == -signal.SIGTERM:
        return  # the signal came when the command was at its end, or had not begun
    own = [record for one, record in records.items() if victims.controller_of(played.home, one) == process.pid]
    if own:
        assert own[0].end_reason is not None
        assert process.returncode == own[0].end_reason.exit_status, f"{own[0].message}\n{_said(played)}"
    else:
        assert hits and process.returncode == HostError.exit_code, f"no record, for no reason\n{_said(played)}"


def _said(played: Round) -> str:
    """How each controller ended, and what they all said."""
    ends = [
        f"{one.work}: {one.process and one.process.returncode}{' canceled' if one.canceled else ''}" for one in played.controllers
    ]
    return f"{', '.join(ends)}\n{played.log.read_text(errors='replace')}"
