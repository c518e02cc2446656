"""The Quest view's JSON: what it says, and that it says so as its schema promises."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id
from forge_orchestration.health import last
from forge_orchestration.metrics.status import MOST_LISTED, quest_status, status_schema
from forge_orchestration.model.health import CheckResult
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.settings import Settings
from forge_orchestration_tests.unit.executions.test_statistics import record
from forge_orchestration_tests.unit.metrics.conftest import HOSTILE, Index

COMMITTED = Path(__file__).parents[3] / "docs" / "quest-status.schema.json"


def asked(settings: Settings) -> dict[str, Any]:
    found = json.loads(msgspec.json.encode(quest_status(settings)))
    jsonschema.validate(found, json.loads(COMMITTED.read_text()))
    return found


def test_the_committed_schema_is_the_generated_one() -> None:
    assert json.loads(COMMITTED.read_text()) == status_schema(), "run: python -m forge_orchestration.metrics.status"


def test_a_home_that_was_never_used(settings: Settings) -> None:
    found = asked(settings)
    assert found["health"] == {"overall": "unknown", "errors": 0, "warnings": 0, "oldest_at": None, "checks": []}
    assert (found["running"]["count"], found["queued"]["count"], found["last_failures"]) == (0, 0, [])
    assert (found["last_24h"]["ended"], found["last_24h"]["success_rate"]) == (0, None)
    assert found["isolation"] == {"degraded": False, "protections_off": []} and found["corruption"] == []
    assert {one["state"] for one in found["runtimes"]} == {"missing"}


def test_what_ended_in_the_last_day(settings: Settings, index: Index) -> None:
    now = time.time()
    reasons = (EndReason.COMPLETED, EndReason.COMPLETED, EndReason.MEMORY, EndReason.CONTROLLER_LOST, EndReason.CANCELED, EndReason.RUNTIME_UNHEALTHY)  # fmt: skip
    index(*(record(number, reason, ended_at=now - 60) for number, reason in enumerate(reasons)))
    index(record(50, EndReason.PIDS, ended_at=now - 90_000, suspect=True))
    day = asked(settings)["last_24h"]
    assert day["by_status"] == {"succeeded": 2, "failed": 1, "lost": 1, "canceled": 1, "refused": 1}
    assert (day["ended"], day["suspect"], day["success_rate"]) == (6, 0, 0.5), "what was canceled or refused is no one's failure"
    assert [one["end_reason"] for one in asked(settings)["last_failures"]] == [
        "runtime_unhealthy", "controller_lost", "memory", "pids",
    ]  # fmt: skip


def test_what_runs_and_what_waits(settings: Settings, index: Index) -> None:
    for status in (Status.QUEUED, Status.RUNNING, Status.COLLECTING):
        folder = ExecutionFolder(settings.executions_dir, new_execution_id())
        folder.create()
        folder.write_record(ExecutionRecord(execution_id=folder.id, analysis="a", status=status, message=f"{status}."))
        index(ExecutionRecord(execution_id=folder.id, analysis="a"))
    found = asked(settings)
    assert [one["status"] for one in found["running"]["first"]] == ["running", "collecting"]
    assert [one["message"] for one in found["queued"]["first"]] == ["queued."]


def test_lists_are_short_and_counts_are_whole(settings: Settings, index: Index) -> None:
    for number in range(MOST_LISTED + 5):
        folder = ExecutionFolder(settings.executions_dir, f"20260102T0304{number:05}-9f86d081")
        folder.create()
        folder.write_record(ExecutionRecord(execution_id=folder.id, analysis="a"))
        index(ExecutionRecord(execution_id=folder.id, analysis="a"), record(1000 + number, EndReason.MEMORY))
    found = asked(settings)
    assert (found["queued"]["count"], len(found["queued"]["first"])) == (MOST_LISTED + 5, MOST_LISTED)
    assert len(found["last_failures"]) == MOST_LISTED


@pytest.mark.parametrize(
    ("results", "overall"),
    [
        ([CheckResult(name="a", target="host", passed=True)], "healthy"),
        ([CheckResult(name="a", target="host", passed=True), CheckResult(name="b", target="host", passed=False, severity="warning")], "warnings"),
        ([CheckResult(name="a", target="host", passed=False), CheckResult(name="b", target="host", passed=False, severity="warning")], "unhealthy"),
    ],
)  # fmt: skip
def test_health_is_the_worst_that_was_found(settings: Settings, results: list[CheckResult], overall: str) -> None:
    last.keep(settings, results, "quick")
    found = asked(settings)["health"]
    assert found["overall"] == overall and found["oldest_at"] == found["checks"][0]["checked_at"]


def test_corruption_is_told_apart(settings: Settings) -> None:
    bad = CheckResult(name="outputs", target="storage", passed=False, finding="x has other content", corruption=True)
    last.keep(settings, [bad, CheckResult(name="integrity", target="storage", passed=False)], "full")
    (found,) = asked(settings)["corruption"]
    assert (found["name"], found["tier"], found["finding"]) == ("outputs", "full", "x has other content")


def test_what_the_newest_did_without(settings: Settings, index: Index) -> None:
    index(record())
    assert asked(settings)["isolation"] == {"degraded": True, "protections_off": ["identity", "precedence"]}


def test_hostile_words_come_out_as_they_went_in(settings: Settings, index: Index) -> None:
    index(record(1, EndReason.OUTPUT_REJECTED, analysis=HOSTILE, message=HOSTILE))
    (one,) = asked(settings)["last_failures"]
    assert (one["analysis"], one["message"]) == (HOSTILE, HOSTILE)
