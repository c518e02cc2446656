"""Attacks that outlive their execution: daemons, sessions, deaf and stopped processes, trees that grow while they are cut."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration_tests.conftest import PATIENCE
from forge_orchestration_tests.security.arena import OWN_UIDS, Arena, Outcome

LONG_S = 300  # what is left behind would be there for so long


def run(
    arena: Arena, name: str, limits: dict[str, str] | None = None, on_fact: Callable[[dict[str, object]], None] | None = None
) -> Outcome:
    """Run it with a mark in its environment; no process with that mark may be left on the host."""
    mark = os.urandom(12).hex()
    outcome = arena.run(f"outlive/{name}", limits=limits, env={"MARK": mark}, on_fact=on_fact, long_s=LONG_S)
    assert marked(mark) == [], outcome
    return outcome


def marked(mark: str) -> list[str]:
    """Command lines of processes that have `mark` in their environment."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in Path(entry.path, "environ").read_bytes():
                    found.append(Path(entry.path, "cmdline").read_text())
    return found


# how many processes each says that it has left, and must have been there to be killed
LEFT = {"daemon": 1, "sessions": 8, "stopped_tree": 6, "holds_pipes": 4, "reborn": 2, "reaper": 1, "chain": 20, "late_writer": 1}


@pytest.mark.parametrize("name", LEFT)
def test_left_behind(arena: Arena, name: str) -> None:
    """The main process ends well, at once, and what it leaves does not live any longer."""
    outcome = run(arena, name)
    assert outcome.finished, outcome
    wall = outcome.record.usage.wall_s
    assert wall is not None and wall.value < 30, outcome
    left = outcome.facts.get("left", outcome.facts.get("stopped", outcome.facts.get("depth", 1)))
    assert len(left) == 2 if isinstance(left, list) else left == "alive" or left >= LEFT[name], outcome  # type: ignore[operator]
    peak = outcome.record.usage.peak_pids
    assert peak is None or peak.value >= LEFT[name] + 1, outcome  # and the main process
    outcome.assert_ended("completed")


def test_the_first_process_cannot_be_ended(arena: Arena) -> None:
    outcome = run(arena, "reaper")
    for what, error in outcome.errors().items():
        # an ordinary user may send it signals, which the kernel keeps from the first process of a namespace
        assert error == (None if what == "reaper" or not OWN_UIDS else "EPERM"), outcome
    assert outcome.facts["first_is_there"] is True, outcome


def test_outputs_are_read_when_nobody_writes_any_more(arena: Arena) -> None:
    outcome = run(arena, "late_writer")
    (output,) = outcome.record.outputs
    kept = Path(outcome.record.folder, "outputs", "result.txt").read_bytes()
    assert output.sha256 == hashlib.sha256(kept).hexdigest() and output.bytes == len(kept)
    assert kept == b"" or int(kept) >= 0


ENDLESS = {"deaf": "ignored SIGTERM", "stops_itself": "stop", "breeder": "begun", "spinning_threads": "spinning"}


@pytest.mark.parametrize("name", ENDLESS)
def test_without_end(arena: Arena, name: str) -> None:
    outcome = run(arena, name, {"wall_time": f"{2 * PATIENCE:g}s", "grace": "0.5s", "pids": "64"})
    assert ENDLESS[name] in {one.attempt for one in outcome.attempts} and not outcome.finished, outcome
    outcome.assert_ended("wall_time")
    assert outcome.record.signal == 9 and f"{2 * PATIENCE:g}s" in outcome.record.message, outcome


def test_a_thousand_processes_end_within_2_s(arena: Arena) -> None:
    decided: list[float] = []

    def decide(fact: dict[str, object]) -> None:
        if "alive" in fact:  # how long it took to make them is not what is measured
            assert arena.started is not None
            supervisor = read_supervisor(ExecutionFolder(Path(arena.started.folder).parent, arena.started.execution_id))
            assert supervisor is not None
            decided.append(time.time())
            supervisor.send(signal.SIGTERM)

    outcome = run(arena, "thousand", {"grace": "0s", "pids": "1100", "memory": "1GiB"}, decide)
    assert outcome.facts["alive"] == 1000 and len(decided) == 1, outcome
    outcome.assert_ended("canceled")
    assert outcome.record.signal == 9 and outcome.record.cleanup.finished_at is not None
    assert outcome.record.cleanup.finished_at - decided[0] < 2 * PATIENCE, outcome


def test_the_hosts_schedulers(arena: Arena) -> None:
    outcome = run(arena, "host_schedulers")
    outcome.assert_refused("ENOENT", "EROFS", "EACCES", "EPERM", "ENOTDIR")
    assert all(one["status"] != 0 for one in outcome.said if "tool" in one), outcome
    outcome.assert_ended("completed")
