"""Executions that do not fit together wait for each other, in order, whatever happens to those who wait or run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import forge_orchestration
from forge_orchestration import BackendUnavailableError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executors.admission import Ledger, ledger_of
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.sandbox.cgroups.find import find_site, scope_prefix
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import Forge, close_own_spawners, leftovers, wait_until

CAPACITY = "[capacity]\nmemory = '256MiB'\n[maximum]\nmemory = '1GiB'\n"
PATIENCE_S = 120  # also on an emulated processor
BIG = ("--memory", "200MiB", "--pids", "20", "--scratch", "8MiB")
HOLD = "while ! [ -e $FORGE_INPUTS/gate/open ]; do sleep 0.05; done; "


@pytest.fixture
def crowded(other_forge: Forge) -> Iterator[Forge]:
    """A deployment that gives 256 MiB to all executions together; where it can, in a cgroup that nobody else uses."""
    text = f"allowed_input_roots = ['{other_forge.home.parent}']\n{CAPACITY}"
    own = f"forge-test-{os.getpid()}" if os.geteuid() == 0 and not scope_prefix() else ""
    (other_forge.home / "settings.toml").write_text(f"{text}[cgroup]\nparent = '{own}'\n")
    ledger = ledger_of(load_settings(other_forge.home))._path
    yield other_forge
    if own:
        Ledger(ledger).drop_unheld()  # of a test that failed half-way
        assert claims(other_forge) == []
        ledger.unlink(missing_ok=True)
        close_own_spawners()
        site = find_site(own)
        for folder in (*site.folders("executions"), *site.folders("supervisors"), *site.folders("")):
            wait_until(f"the last process of {folder}", lambda folder=folder: _remove(folder), PATIENCE_S)


def claims(forge: Forge) -> list[str]:
    """Ids of those that run or wait, by the ledger."""
    return [claim.execution_id for claim in ledger_of(load_settings(forge.home)).read().claims]


def nothing_is_left(forge: Forge) -> None:
    """A loop device that a spawner's end detaches takes a moment."""
    wait_until("nothing to be left", lambda: leftovers(forge.home) == [], PATIENCE_S)


def _remove(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


@pytest.fixture
def gate(other_forge: Forge) -> Path:
    """Those that `HOLD` go on once `open` is in it."""
    folder = other_forge.home.parent / "gate"
    folder.mkdir(mode=0o755)
    other_forge.home.parent.chmod(0o755)
    return folder


def records(forge: Forge) -> list[ExecutionRecord]:
    """The oldest first."""
    return [
        forge.read_record(one) for one in sorted(forge.executions()) if (forge.home / "executions" / one / "record.json").exists()
    ]


def nth(forge: Forge, number: int, status: str) -> ExecutionRecord:
    """The record of the execution that came as number `number`, once it has that status."""

    def look() -> ExecutionRecord | None:
        seen = records(forge)
        return seen[number] if len(seen) > number and seen[number].status == status else None

    found = wait_until(f"execution {number} to be {status}", look, timeout_s=PATIENCE_S)
    assert found is not None
    return found


def waiting(forge: Forge, number: int) -> ExecutionRecord:
    """Likewise, once it is known to wait."""
    return wait_until("what it waits for", lambda: one if (one := nth(forge, number, "queued")).message else None, PATIENCE_S)


def held(gate: Path, then: str = "") -> tuple[str, ...]:
    """Arguments of an execution that goes on once the gate is open."""
    return ("exec", *BIG, "--input", f"gate={gate}", "--", "sh", "-c", HOLD + then)


def test_two_that_do_not_fit_together_run_one_after_the_other(crowded: Forge, gate: Path) -> None:
    with crowded.started(*held(gate)) as first:
        nth(crowded, 0, "running")
        with crowded.started("run", "confinement", *BIG[:2]) as second:
            record = waiting(crowded, 1)
            assert "asks for 200.0 MiB memory, and 200.0 MiB of 256.0 MiB are taken" in record.message
            rows = {row["execution_id"]: row for row in json.loads(crowded("executions", "list", "--json").stdout)}
            assert rows[record.execution_id]["status"] == "queued"
            for status, number in (("queued", 1), ("running", 0)):
                listed = json.loads(crowded("executions", "list", "--status", status, "--json").stdout)
                assert [row["execution_id"] for row in listed] == [records(crowded)[number].execution_id]
            doctor = {line["name"]: line for line in json.loads(crowded("doctor", "--json").stdout)}["capacity"]
            assert doctor["passed"] and "1 running, with 200.0 MiB of 256.0 MiB memory" in doctor["finding"]
            assert f"1 waiting, first {record.execution_id}" in doctor["finding"]
            (gate / "open").touch()
            assert first.wait(timeout=PATIENCE_S) == 0
            _, said = second.communicate(timeout=PATIENCE_S)
            assert second.returncode == 0, said
    assert said.count("Waiting for room: ") == 1
    before, after = records(crowded)
    assert (before.end_reason, after.end_reason) == (EndReason.COMPLETED, EndReason.COMPLETED)
    assert after.started_at is not None and before.cleanup.finished_at is not None
    assert after.started_at > before.cleanup.finished_at
    assert "Waiting" not in after.message
    assert claims(crowded) == []


def test_64_at_once_and_never_more_than_fit(crowded: Forge) -> None:
    with contextlib.ExitStack() as stack:
        words = ("exec", "--memory", "64MiB", "--pids", "16", "--scratch", "8MiB", "--", "true")
        running = [stack.enter_context(crowded.started(*words)) for _ in range(64)]
        assert [process.wait(timeout=200) for process in running] == [0] * 64
    seen = records(crowded)
    assert len(seen) == 64 and {one.end_reason for one in seen} == {EndReason.COMPLETED}
    moments = [(one.started_at or 0.0, 1) for one in seen] + [(one.cleanup.finished_at or 0.0, -1) for one in seen]
    together = most = 0
    for _, change in sorted(moments):
        together += change
        most = max(most, together)
    assert 1 <= most <= 4, "256 MiB hold four of 64"
    nothing_is_left(crowded)


def test_the_kernel_holds_the_sum(crowded: Forge, gate: Path) -> None:
    with crowded.started(*held(gate)) as process:
        record = nth(crowded, 0, "running")
        source = Path(record.enforced["memory_bytes"].source)
        assert int((source.parent.parent / source.name).read_text()) == 256 << 20
        (gate / "open").touch()
        assert process.wait(timeout=PATIENCE_S) == 0


def test_what_can_never_fit_is_refused_and_leaves_nothing(crowded: Forge) -> None:
    done = crowded("exec", "--memory", "300MiB", "--", "true")
    assert done.returncode == 2 and "300.0 MiB" in done.stderr and "256.0 MiB" in done.stderr and "[capacity]" in done.stderr
    assert crowded.executions() == set() and crowded("executions", "list", "--json").stdout.strip() == "[]"


def test_no_wait_is_refused_and_leaves_nothing(crowded: Forge, gate: Path) -> None:
    with crowded.started(*held(gate)) as process:
        first = nth(crowded, 0, "running").execution_id
        done = crowded("exec", *BIG, "--no-wait", "--", "true")
        assert done.returncode == 5 and done.stdout == ""
        assert "no room" in done.stderr and "200.0 MiB of 256.0 MiB are taken" in done.stderr
        assert crowded.executions() == {first}
        assert [row["execution_id"] for row in json.loads(crowded("executions", "list", "--json").stdout)] == [first]
        assert claims(crowded) == [first]
        small = crowded("exec", "--memory", "32MiB", "--no-wait", "--", "true")
        assert small.returncode == 0, small.stderr
        (gate / "open").touch()
        assert process.wait(timeout=PATIENCE_S) == 0


def test_priority_goes_before_time(crowded: Forge, gate: Path) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(crowded.started(*held(gate)))
        nth(crowded, 0, "running")
        others = []
        for number, priority in enumerate((0, 5, 0), start=1):
            others.append(stack.enter_context(crowded.started("exec", *BIG, "--priority", str(priority), "--", "true")))
            waiting(crowded, number)
        assert "2 wait before it" in records(crowded)[3].message
        (gate / "open").touch()
        assert [process.wait(timeout=PATIENCE_S) for process in (first, *others)] == [0] * 4
    seen = records(crowded)
    order = sorted(range(4), key=lambda number: seen[number].started_at or 0.0)
    assert order == [0, 2, 1, 3]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 15), (signal.SIGINT, 130)])
def test_canceled_while_it_waits(crowded: Forge, gate: Path, number: int, status: int) -> None:
    with crowded.started(*held(gate)) as first:
        running = nth(crowded, 0, "running").execution_id
        with crowded.started("exec", "--json", *BIG, "--", "true") as second:
            waiting(crowded, 1)
            second.send_signal(number)
            out, _ = second.communicate(timeout=PATIENCE_S)
        assert second.returncode == status
        record = json.loads(out)
        assert (record["status"], record["end_reason"], record["started_at"]) == ("canceled", "canceled", None)
        assert record["ended_at"] is not None and "before it began" in record["message"]
        rows = {row["execution_id"]: row["status"] for row in json.loads(crowded("executions", "list", "--json").stdout)}
        assert rows[record["execution_id"]] == "canceled"
        assert claims(crowded) == [running]
        (gate / "open").touch()
        assert first.wait(timeout=PATIENCE_S) == 0


@pytest.mark.parametrize("interruption", [None, KeyboardInterrupt])
def test_canceled_by_a_caller_in_python(
    crowded: Forge, gate: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException] | None
) -> None:
    monkeypatch.setenv("FORGE_HOME", str(crowded.home))
    cancel = threading.Event()
    told: list[ExecutionRecord] = []

    class Listener:
        def on_started(self, record: ExecutionRecord) -> None:
            told.append(record)
            cancel.set()
            if interruption is not None:
                raise interruption

        def on_log(self, stream: str, data: bytes) -> None: ...

        def on_message(self, message: object) -> None: ...

    limits = {"memory": "200MiB", "pids": 20, "scratch": "8MiB"}
    with crowded.started(*held(gate)) as first:
        nth(crowded, 0, "running")
        with pytest.raises(BackendUnavailableError, match="no room"):
            forge_orchestration.run(["true"], limits=limits, wait_for_room=False)
        with pytest.raises(interruption) if interruption else contextlib.nullcontext():
            forge_orchestration.run(["true"], limits=limits, cancel=cancel, listener=Listener())
        assert [(one.status, "Waiting for room" in one.message) for one in told] == [("queued", True)]
        assert crowded.read_record(told[0].execution_id).end_reason is EndReason.CANCELED
        (gate / "open").touch()
        assert first.wait(timeout=PATIENCE_S) == 0


def test_a_controller_killed_while_it_waits_leaves_nothing(crowded: Forge, gate: Path) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(crowded.started(*held(gate)))
        nth(crowded, 0, "running")
        second = stack.enter_context(crowded.started("exec", *BIG, "--", "true"))
        waiting(crowded, 1)
        third = stack.enter_context(crowded.started("exec", *BIG, "--", "true"))
        waiting(crowded, 2)
        second.kill()
        second.wait(timeout=PATIENCE_S)
        (gate / "open").touch()
        assert [first.wait(timeout=PATIENCE_S), third.wait(timeout=PATIENCE_S)] == [0, 0], (
            "nobody waits for the dead, and without `forge gc`"
        )
        crowded("gc")  # or a later controller at its start, whichever came first
    lost = records(crowded)[1]
    assert (lost.status, lost.end_reason) == (
        Status.LOST,
        EndReason.CONTROLLER_LOST,
    ) and "before the analysis began" in lost.message
    nothing_is_left(crowded)


def test_controller_and_supervisor_killed_while_it_runs_hold_nothing_back(crowded: Forge, gate: Path) -> None:
    with crowded.started(*held(gate)) as first:
        record = nth(crowded, 0, "running")
        supervisor = read_supervisor(ExecutionFolder(crowded.home / "executions", record.execution_id))
        assert supervisor is not None
        first.kill()
        supervisor.send(signal.SIGKILL)
        first.wait(timeout=PATIENCE_S)
    assert crowded("exec", *BIG, "--", "true").returncode == 0
    crowded("gc")
    assert crowded.read_record(record.execution_id).status is Status.LOST
    nothing_is_left(crowded)


def test_a_runtime_that_breaks_while_one_waits_is_noticed(crowded: Forge, gate: Path) -> None:
    """What was looked at when it came is looked at again when it starts."""
    data = gate.parent / "data.txt"
    data.write_text("before")
    with crowded.started(*held(gate)) as first:
        nth(crowded, 0, "running")
        with crowded.started("exec", *BIG, "--input", f"data={data}", "--", "cat", "/forge/inputs/data") as second:
            waited = waiting(crowded, 1)
            data.write_text("since then")
            (gate / "open").touch()
            assert second.communicate(timeout=PATIENCE_S)[0] == "since then"
        assert first.wait(timeout=PATIENCE_S) == 0
    record = records(crowded)[1]
    assert record.inputs[0].bytes == len("since then") and record.inputs[0].sha256 != waited.inputs[0].sha256


class TestHostPressure:
    """A limit above the execution's own kills or refuses: that is told from its own, whatever its own counters say."""

    def above(self, forge: Forge, gate: Path, script: str, file: str, value: int, *more: str) -> ExecutionRecord:
        """Run `script`; while it holds, set the limit of all executions, as if others had taken what is missing."""
        words = ("exec", *BIG, *more, "--input", f"gate={gate}", "--", "sh", "-c", script)
        with forge.started(*words) as process:
            record = nth(forge, 0, "running")
            source = Path(record.enforced[file].source)
            log = Path(record.logs["stdout"].path)
            wait_until("the script to hold", lambda: "ready" in log.read_text(), PATIENCE_S)
            (source.parent.parent / source.name).write_text(str(value))
            (gate / "open").touch()
            assert process.wait(timeout=PATIENCE_S) == 5
        return records(forge)[0]

    def test_memory(self, crowded: Forge, gate: Path) -> None:
        script = f"echo ready; {HOLD} exec python -c 'bytearray(150 << 20)'"
        record = self.above(crowded, gate, script, "memory_bytes", 64 << 20)
        assert (record.status, record.end_reason) == (Status.LOST, EndReason.HOST_PRESSURE), record.message
        assert "200.0 MiB" in record.message and "less busy" in record.message

    def test_memory_after_its_cache_was_at_its_own_limit(self, crowded: Forge, gate: Path) -> None:
        """Its own limit stood in the way all the time, and the kernel made room: that is no reason to be killed."""
        script = f"head -c 260M /dev/zero > big; cat big > /dev/null; echo ready; {HOLD} exec python -c 'bytearray(150 << 20)'"
        record = self.above(crowded, gate, script, "memory_bytes", 64 << 20, "--scratch", "400MiB")
        assert record.end_reason is EndReason.HOST_PRESSURE, record.message
        peak = record.usage.peak_memory_bytes
        assert peak is not None and peak.value > 190 << 20, "the cache was at the limit"

    def test_its_own_limit_is_still_its_own(self, crowded: Forge) -> None:
        record = crowded.record("exec", *BIG, "--", "python", "-c", "bytearray(300 << 20)")
        assert record.end_reason is EndReason.MEMORY

    def test_processes(self, crowded: Forge, gate: Path) -> None:
        many = 'import subprocess; [subprocess.Popen(["sleep", "60"]) for _ in range(9)]'
        record = self.above(crowded, gate, f"echo ready; {HOLD} exec python -c '{many}'", "pids", 5)
        assert (record.status, record.end_reason) == (Status.LOST, EndReason.HOST_PRESSURE), record.message
        assert "processes" in record.message
