"""`retry_with_more`: an end for want of memory or of time is followed by an attempt with more, as often as the analysis says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from forge_orchestration.model.limits import Limits
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord, InputFacts
from forge_orchestration.model.spec import AnalysisSpec, RetryWithMore
from forge_orchestration.operations.retry_with_more import next_attempt, repeated
from forge_orchestration_tests.conftest import PATIENCE, Forge
from forge_orchestration_tests.integration.dagster_support import Deployment

pytestmark = pytest.mark.together
TAKES = "hold = bytearray(150 * 2**20)\nhold[::4096] = b'x' * len(hold[::4096])\nprint('had enough')\n"
DEFINITION = "limits: {memory: 64MiB}\nretry_with_more: {attempts: 3, factor: 2}\n"
MAXIMUM = Limits(memory_bytes=2**30, wall_time_s=100.0)
SPEC = AnalysisSpec(name="x", command=("true",), retry_with_more=RetryWithMore(attempts=3, factor=4))


def ended(reason: EndReason, attempt: int = 1, **limits: float) -> ExecutionRecord:
    return ExecutionRecord(
        execution_id="20260102T030405678-9f86d081", analysis="x", executor="local", host="h", command=("true",), queued_at=1.0,
        folder="/x", status=Status.FAILED, end_reason=reason, attempt=attempt, limits=msgspec.convert(limits, Limits),
    )  # fmt: skip


class TestNextAttempt:
    def test_of_memory(self) -> None:
        found = next_attempt(SPEC, ended(EndReason.MEMORY, memory_bytes=2**27), MAXIMUM)
        assert found is not None
        spec, sentence = found
        assert (spec.limits.memory_bytes, spec.attempt, spec.previous_execution_id) == (2**29, 2, "20260102T030405678-9f86d081")
        assert spec.chosen_by["memory"] == "retry with more: 128MiB was too little"
        assert sentence == "It is tried again with a memory limit of 512MiB instead of 128MiB, attempt 2 of 3."

    def test_of_time_up_to_what_is_allowed(self) -> None:
        found = next_attempt(SPEC, ended(EndReason.WALL_TIME, wall_time_s=60.0, attempt=2), MAXIMUM)
        assert found is not None
        assert found[0].limits.wall_time_s == 100.0
        assert next_attempt(SPEC, ended(EndReason.WALL_TIME, wall_time_s=100.0), MAXIMUM) is None

    @pytest.mark.parametrize("reason", sorted(set(EndReason) - {EndReason.MEMORY, EndReason.WALL_TIME}))
    def test_no_other_end(self, reason: EndReason) -> None:
        assert next_attempt(SPEC, ended(reason), MAXIMUM) is None

    def test_one_that_was_lost_is_repeated_with_what_it_had(self) -> None:
        spec = msgspec.structs.replace(SPEC, inputs={"table": "asset://cells/table", "file": "/x"})
        before = msgspec.structs.replace(
            ended(EndReason.CONTROLLER_LOST, attempt=2, memory_bytes=2**29), chosen_by={"memory": "retry with more"},
            inputs=[InputFacts(name="table", source="execution://a/t.csv", sha256="0", bytes=1), InputFacts(name="file", source="/x", sha256="0", bytes=1)],
        )  # fmt: skip
        again = repeated(spec, before)
        assert (again.attempt, again.limits.memory_bytes, again.chosen_by) == (3, 2**29, {"memory": "retry with more"})
        assert again.inputs == {"table": "execution://a/t.csv", "file": "/x"}

    def test_not_more_often_than_said(self) -> None:
        assert next_attempt(SPEC, ended(EndReason.MEMORY, attempt=3), MAXIMUM) is None
        assert (
            next_attempt(msgspec.structs.replace(SPEC, retry_with_more=RetryWithMore()), ended(EndReason.MEMORY), MAXIMUM) is None
        )


def test_on_the_command_line(other_forge: Forge, tmp_path: Path) -> None:
    folder = tmp_path / "hungry"
    folder.mkdir()
    (folder / "run.py").write_text(TAKES)
    (folder / "analysis.yaml").write_text(f"command: [python, run.py]\nruntime: forge-python\n{DEFINITION}")
    done = other_forge("run", str(folder))
    assert done.returncode == 0, done.stderr
    assert "It is tried again with a memory limit of 128MiB instead of 64MiB, attempt 2 of 3." in done.stderr
    records = sorted((other_forge.read_record(one) for one in other_forge.executions()), key=lambda one: one.attempt)
    assert [(one.end_reason, one.limits.memory_bytes // 2**20) for one in records] == [
        ("memory", 64),
        ("memory", 128),
        ("completed", 256),
    ]
    assert [one.previous_execution_id for one in records] == [None, *(one.execution_id for one in records[:-1])]
    assert records[2].enforced["memory_bytes"].value == 256 * 2**20


def test_in_dagster(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path)
    deployment.build_runtime()
    deployment.add_analysis("hungry", TAKES, DEFINITION)
    deployment.add_analysis(
        "slow",
        f"import time\ntime.sleep({60 * PATIENCE})\n",
        f"limits: {{wall_time: {PATIENCE}s, grace: 0s}}\nretry_with_more: {{attempts: 2}}\n",
    )
    done = deployment.job_execute("hungry")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("STEP_UP_FOR_RETRY") == 2
    assert "tried again with a memory limit of 256MiB instead of 128MiB, attempt 3 of 3" in done.stderr
    done = deployment.job_execute("slow")
    assert done.returncode == 1
    assert done.stderr.count("STEP_UP_FOR_RETRY") == 1
    told = [(record["end_reason"], record["attempt"], record["limits"]["wall_time_s"]) for record in deployment.records()[-2:]]
    assert told == [("wall_time", 1, PATIENCE), ("wall_time", 2, 2 * PATIENCE)]
