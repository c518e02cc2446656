"""What an untrusted program may put into a run's log, and how much of it."""

from __future__ import annotations

import logging
from pathlib import Path

import dagster as dg
import pytest

from forge_orchestration.model.messages import Message
from forge_orchestration.model.reasons import Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.orchestration import captured_logs, live
from forge_orchestration.orchestration.captured_logs import CapturedLogs
from forge_orchestration.orchestration.live import RunLog


class FakeLog:
    """Keeps events instead of storing them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def log(self, level: str | int, text: str) -> None:
        self.events.append((logging.getLevelName(level) if isinstance(level, int) else level, text))

    def info(self, text: str) -> None:
        self.log("INFO", text)

    def warning(self, text: str) -> None:
        self.log("WARNING", text)


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


def run_log(log: FakeLog, now: list[float] | None = None) -> RunLog:
    clock = now or [0.0]
    return RunLog(log, clock=lambda: clock[0])  # type: ignore[arg-type]


def test_messages_beyond_the_cap_are_counted_and_said_once(log: FakeLog) -> None:
    listener = run_log(log)
    for number in range(live.MAX_EVENTS + 20):
        listener.on_message(Message(type="log", level="warning", message=f"number {number}"))
    listener.finish()
    assert len(log.events) == live.MAX_EVENTS + 2
    assert log.events[0] == ("WARNING", "number 0")
    assert "not shown" in log.events[live.MAX_EVENTS][1]
    assert log.events[-1][1].startswith("20 further messages")


@pytest.mark.parametrize(("status", "told"), [(Status.QUEUED, True), (Status.SUCCEEDED, False)])
def test_what_an_execution_waits_for_is_said(log: FakeLog, status: Status, told: bool) -> None:
    """One that is over when it is announced has a message too."""
    record = ExecutionRecord(execution_id="x", analysis="a", status=status, message="Waiting for room.")
    run_log(log).on_started(record)
    assert ("INFO", "Waiting for room.") in log.events if told else len(log.events) == 1


def test_progress_is_paced_and_the_last_is_always_shown(log: FakeLog) -> None:
    now = [100.0]
    listener = run_log(log, now)
    for step in range(1, 101):
        listener.on_message(Message(type="progress", fraction=step / 100, message=f"step {step}"))
        now[0] += 0.05
    listener.finish()
    texts = [text for _, text in log.events]
    assert texts[0] == "Progress: 1% step 1"
    assert texts[-1] == "Progress: 100% step 100"
    assert len(texts) <= 7


def test_progress_of_a_week_does_not_fill_the_event_log(log: FakeLog) -> None:
    now = [0.0]
    listener = run_log(log, now)
    for second in range(7 * 86_400):
        now[0] = float(second)
        listener.on_message(Message(type="progress", fraction=0.5))
    assert len(log.events) < 3000


def test_output_cannot_steer_a_terminal(log: FakeLog, capsys: pytest.CaptureFixture[str]) -> None:
    listener = run_log(log)
    for data in (b"red \x1b[31m\x9b1m title \x1b]0;x\x07", b"10%\r20%\r", b"\nhalf \xc3", b"\xa4 \xff \xe2\x80\xae end\n"):
        listener.on_log("stdout", data)
    listener.finish()
    shown = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert "10%\n20%\n" in shown
    assert "half ä" in shown
    assert r"\xff" in shown


def test_a_flood_of_output_is_cut_and_said_once(log: FakeLog, capsys: pytest.CaptureFixture[str]) -> None:
    listener = run_log(log)
    for _ in range(live.MAX_STREAM_BYTES // 2**20 + 3):
        listener.on_log("stderr", b"#" * 2**20)
    listener.finish()
    shown = capsys.readouterr().err
    assert shown.count("#") == live.MAX_STREAM_BYTES
    assert shown.count("has more") == 1


def test_a_steps_log_is_that_of_its_last_execution_and_changes_none(tmp_path: Path) -> None:
    """A step that goes on after a kill shows the execution that was begun, and another one if that was lost."""
    files = [tmp_path / "first.log", tmp_path / "second.log"]
    for file in files:
        file.write_text(file.stem)
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        key = instance.compute_log_manager.build_log_key_for_run("run", "step")
        captured = CapturedLogs(instance, key)
        for file in (files[0], files[0], files[1], files[1], tmp_path / "not there yet"):
            captured.show("stdout", file)
        captured.complete()
        assert instance.compute_log_manager.get_log_data(key).stdout == b"second"
    assert [file.read_text() for file in files] == ["first", "second"]


def test_a_step_of_many_executions_has_a_beginning_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_logs, "MAX_APPENDED_BYTES", 20)
    (tmp_path / "log").write_text("0123456789")
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        key = instance.compute_log_manager.build_log_key_for_run("run", "step")
        captured = CapturedLogs(instance, key)
        for path in (tmp_path / "log", tmp_path / "gone", tmp_path / "log", tmp_path / "log"):
            captured.append("stdout", "= a =\n", path)
        captured.complete()
        assert instance.compute_log_manager.get_log_data(key).stdout == b"= a =\n0123456789\n= a =\n012\n"
    assert (tmp_path / "log").read_text() == "0123456789"
