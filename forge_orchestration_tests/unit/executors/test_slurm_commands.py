"""Slurm's commands, and what their answers mean."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.executors import slurm_commands as commands
from forge_orchestration.executors.slurm_commands import JobState
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.sections import SlurmSettings

LIMITS = msgspec.structs.replace(Limits(), memory_bytes=2**30 + 1, cpus=1.5, wall_time_s=61.0, grace_s=5.0)


def test_a_job_asks_for_more_than_its_execution_may_have() -> None:
    command = commands.submit(["an-id"], commands.resources(LIMITS, SlurmSettings(spare_bytes=2**20, spare_s=60)))
    assert {"--mem=1026M", "--cpus-per-task=2", "--time=3", "--no-requeue", "--job-name=forge-an-id"} <= set(command)
    assert not any(word.startswith(("--partition", "--account", "--qos", "--array")) for word in command)
    asked = commands.resources(LIMITS, SlurmSettings(partition="p", account="a", qos="q"))
    assert {"--partition=p", "--account=a", "--qos=q"} <= set(asked)


def test_several_are_an_array() -> None:
    command = commands.submit(["a", "b", "c"], ())
    assert {"--array=0-2", "--job-name=forge-a-and-2"} <= set(command)
    assert [commands.task_of("17", None), commands.task_of("17", 2)] == ["17", "17_2"]
    assert commands.job_of(commands.native_id("17_2")) == "17_2" and commands.job_of("slurm:17_") is None
    assert "--jobs=9_3,17_2,17_10,100" in commands.queue({"17_2", "100", "9_3", "17_10"})
    assert commands.numbers("17_3\n17_[4-9%2]\n18\n17\n") == ["17", "18"]


@pytest.mark.parametrize(
    ("task", "variables", "native_id"),
    [
        ("a", {"SLURM_JOB_ID": "19"}, "slurm:19"),
        ("a", {"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0"}, "slurm:17_0"),
        ("b", {"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "1"}, "slurm:17_1"),
    ],
)
def test_the_script_survives_any_path(tmp_path: Path, task: str, variables: dict[str, str], native_id: str) -> None:
    place = tmp_path / "it's $HOME `x`"
    for name in ("a", "b"):
        (place / name).mkdir(parents=True)
    tell = (sys.executable, "-c", "import os, sys; print(*sys.argv[1:], os.environ['FORGE_NATIVE_ID'], sep='|')")
    script = commands.script(tell, str(place), ["a", "b"], ("/x y", ""))
    for _ in range(2):  # what is said is added
        subprocess.run(["sh"], input=script, env=variables, text=True, check=True)
    assert (place / task / "slurm.log").read_text() == f"{place}/{task}|/x y||{native_id}\n" * 2


@pytest.mark.parametrize(("answer", "job"), [("17\n", "17"), ("17;cluster\n", "17"), ("", None), ("Submitted batch job 17", None)])
def test_the_number_of_a_job(answer: str, job: str | None) -> None:
    assert commands.submitted(answer) == job


def test_states() -> None:
    said = "17_2|RUNNING|node1|N/A|None\n18|CANCELLED by 0|None assigned|2026-11-27T18:06:40|None\n19|PENDING|(null)||Resources\nrubbish\n|x\n"
    states = commands.states(said)
    assert states.keys() == {"17_2", "18", "19"}
    assert (states["17_2"].nodes, states["17_2"].ended_at, states["17_2"].has_ended) == ("node1", None, False)
    ended = time.mktime((2026, 11, 27, 18, 6, 40, 0, 0, -1))
    assert (states["18"].state, states["18"].nodes, states["18"].ended_at) == ("CANCELLED", "", ended)
    assert not JobState(state="A_WORD_OF_TOMORROW").has_ended
    assert states["18"].has_ended and states["19"].waits and states["19"].reason == "Resources"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("PREEMPTED", EndReason.PREEMPTED), ("TIMEOUT", EndReason.WALL_TIME), ("OUT_OF_MEMORY", EndReason.HOST_PRESSURE),
        ("CANCELLED", EndReason.CANCELED), ("NODE_FAIL", EndReason.EXECUTOR_ERROR), ("FAILED", EndReason.EXECUTOR_ERROR),
        ("COMPLETED", EndReason.EXECUTOR_ERROR), ("A_WORD_OF_TOMORROW", EndReason.EXECUTOR_ERROR),
    ],
)  # fmt: skip
def test_what_it_means_that_nobody_else_has_a_last_word(state: str, reason: EndReason) -> None:
    ended, said = commands.verdict(JobState(state=state, nodes="node1"), "17")
    assert ended is reason and state in said and "node1" in said and "17" in said


@pytest.mark.parametrize(
    "reason", ["PartitionTimeLimit", "PartitionConfig", "QOSMaxWallDurationPerJobLimit", "AssocMaxMemPerJob", "BadConstraints"]
)
def test_what_would_never_begin(reason: str) -> None:
    assert reason in JobState(state="PENDING", reason=reason).never_begins
    assert not JobState(state="RUNNING", reason=reason).never_begins


@pytest.mark.parametrize(
    "reason",
    [
        "Resources",
        "Priority",
        "PartitionDown",
        "QOSMaxCpuPerUserLimit",
        "AssocGrpCpuLimit",
        "ReqNodeNotAvail",
        "PartitionNodeLimit",
    ],
)
def test_what_waits_for_others(reason: str) -> None:
    assert not JobState(state="PENDING", reason=reason).never_begins


@pytest.mark.parametrize(
    "complaint",
    [
        "sbatch: error: invalid partition specified: nosuch", "Batch job submission failed: Requested node configuration is not available",
        "Invalid account or account/partition combination specified", "Memory specification can not be satisfied",
    ],
)  # fmt: skip
def test_refusals_are_for_ever(complaint: str) -> None:
    assert commands.is_permanent(complaint) and commands.remedy(complaint)


@pytest.mark.parametrize(
    "complaint", ["Socket timed out on send/recv operation", "Unable to contact slurm controller (connect failure)"]
)
def test_silence_is_not(complaint: str) -> None:
    assert not commands.is_permanent(complaint)
