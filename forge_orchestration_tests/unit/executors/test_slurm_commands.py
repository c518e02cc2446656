"""Slurm's commands, and what their answers mean."""

from __future__ import annotations

import time

import msgspec
import pytest

from forge_orchestration.executors import slurm_commands as commands
from forge_orchestration.executors.slurm_commands import JobState
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.sections import SlurmSettings

LIMITS = msgspec.structs.replace(Limits(), memory_bytes=2**30 + 1, cpus=1.5, wall_time_s=61.0, grace_s=5.0)


def test_a_job_asks_for_more_than_its_execution_may_have() -> None:
    command = commands.submit("an-id", LIMITS, SlurmSettings(spare_bytes=2**20, spare_s=60), "/home/50% ü/an-id")
    assert {"--mem=1026M", "--cpus-per-task=2", "--time=3", "--no-requeue", "--job-name=forge-an-id"} <= set(command)
    assert "--output=/home/50%% ü/an-id/slurm.log" in command, "Slurm replaces what follows a %"
    assert not any(word.startswith(("--partition", "--account", "--qos")) for word in command)
    asked = commands.submit("an-id", LIMITS, SlurmSettings(partition="p", account="a", qos="q"), "/x")
    assert {"--partition=p", "--account=a", "--qos=q"} <= set(asked)


def test_the_script_survives_any_path() -> None:
    script = commands.script(("/opt/a b/python", "-c", "it's"), ("/home/$HOME `x`", ""))
    assert script.endswith("""exec '/opt/a b/python' -c 'it'"'"'s' '/home/$HOME `x`' ''\n""")
    assert 'FORGE_NATIVE_ID="slurm:$SLURM_JOB_ID"' in script


@pytest.mark.parametrize(("answer", "job"), [("17\n", "17"), ("17;cluster\n", "17"), ("", None), ("Submitted batch job 17", None)])
def test_the_number_of_a_job(answer: str, job: str | None) -> None:
    assert commands.submitted(answer) == job


def test_states() -> None:
    said = "17|RUNNING|node1|N/A|None\n18|CANCELLED by 0|None assigned|2026-11-27T18:06:40|None\n19|PENDING|(null)||Resources\nrubbish\n|x\n"
    states = commands.states(said)
    assert states.keys() == {"17", "18", "19"}
    assert (states["17"].nodes, states["17"].ended_at, states["17"].has_ended) == ("node1", None, False)
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
