"""Slurm's commands: what is asked, and how the answers are read. Pure; who runs them is `slurm`."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import time
from collections.abc import Iterable

import msgspec

from forge_orchestration.model.limits import Limits
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.sections import SlurmSettings

PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SLURM_CONF", "TZ")
"""What the commands, and so the jobs, get of the caller's environment: none of the variables that change what a command does or prints.

A job that asks for nothing of it has its user's profile read on the node, which takes a second.
"""
_MIB = 2**20
FORGOTTEN = "FORGOTTEN"
"""Our word for what Slurm has no word for: neither queue nor accounts know the job any more."""
# all others, and those that a later Slurm may have, are of jobs that go on
_ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    FORGOTTEN,
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
_ACCOUNTED_DAYS = 30
# "PartitionTimeLimit", "QOSMaxWallDurationPerJobLimit", "AssocMaxMemPerJob", …: of the one job, not of what others use meanwhile
_NEVER = re.compile(
    r"^Partition(Time|Config)|(?<=Max)(WallDuration|Cpu|Mem|Node)\w*(?=PerJob)|BadConstraints|InvalidAccount|InvalidQOS"
)
_JOB = re.compile(r"[0-9]+")
_FOR_EVER = re.compile(
    r"violates accounting/QOS policy|invalid (partition|account|qos|feature|generic resource)|Requested node configuration is not available|"
    r"Memory specification can not be satisfied|More processors requested than permitted|User's group not permitted|"
    r"Access/permission denied|Invalid account or account/partition|time limit is invalid|Requested time limit is invalid",
    re.IGNORECASE,
)


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """What Slurm says of a job: its `state` in Slurm's own word, the `reason` why it waits or has ended, and since when it has ended."""

    state: str
    reason: str = ""
    nodes: str = ""
    ended_at: float | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    @property
    def waits(self) -> bool:
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD")

    @property
    def never_begins(self) -> str:
        """Why it would wait for ever, and what to do; empty if it would not. A cluster that refuses no such jobs keeps them instead."""
        if not self.waits or not _NEVER.search(self.reason):
            return ""
        return f"Slurm would never start it: {self.reason}. Ask for less time, memory or processors, or see what there is: sinfo --Node --long."


def name_of(execution_id: str) -> str:
    """What the job of an execution is called; by it a job is found again whose number was lost."""
    return f"forge-{execution_id}"


def native_id(job: str) -> str:
    """Of a job, as the record has it."""
    return f"slurm:{job}"


def job_of(native_id: str | None) -> str | None:
    """The job in a record's `native_id`."""
    word, _, job = (native_id or "").partition(":")
    return job if word == "slurm" and _JOB.fullmatch(job) else None


def submit(execution_id: str, limits: Limits, settings: SlurmSettings, folder: str) -> list[str]:
    """The `sbatch` command; the script is its input.

    Slurm's limits are wider than Forge's, which are set on the node and tell why an execution ended: memory by what supervisor
    and page cache of the runtime may take, time by the grace and by what setting up takes.
    """
    minutes = math.ceil((limits.wall_time_s + limits.grace_s + settings.spare_s) / 60)
    memory_mib = math.ceil((limits.memory_bytes + settings.spare_bytes) / _MIB)
    command = [
        "sbatch", "--parsable", f"--job-name={name_of(execution_id)}", f"--comment=forge:{execution_id}", "--export=ALL", "--no-requeue",
        "--nodes=1", "--ntasks=1", f"--cpus-per-task={max(1, math.ceil(limits.cpus))}", f"--mem={memory_mib}M", f"--time={minutes}",
        f"--output={folder.replace('%', '%%')}/slurm.log", "--open-mode=append", "--chdir=/",
    ]  # fmt: skip
    command += [
        f"--{key}={value}"
        for key, value in (("partition", settings.partition), ("account", settings.account), ("qos", settings.qos))
        if value
    ]
    return command


def script(entry_point: Iterable[str], words: Iterable[str]) -> str:
    """What the job does: nothing but to start Forge's entry point on the node, in place of the shell."""
    names = f'export FORGE_NATIVE_ID="{native_id("$SLURM_JOB_ID")}" FORGE_NODE="$SLURMD_NODENAME"'
    return f"#!/bin/sh\n{names}\nexec {shlex.join([*entry_point, *words])}\n"


def submitted(answer: str) -> str | None:
    """The job's number in what `sbatch --parsable` says (`123` or `123;cluster`); None if there is none."""
    found = answer.strip().partition(";")[0]
    return found if _JOB.fullmatch(found) else None


def is_permanent(complaint: str) -> bool:
    """Whether what `sbatch` complains of will be the same next time."""
    return _FOR_EVER.search(complaint) is not None


def remedy(complaint: str) -> str:
    """What to do about it."""
    if re.search(r"node configuration|memory specification|more processors", complaint, re.IGNORECASE):
        return "Ask for less, or see what nodes there are: sinfo --Node --long"
    if "time limit" in complaint.lower():
        return "Lower the wall time limit, or see what partitions allow: sinfo --long"
    return "See [slurm] in settings.toml, and: sinfo; sacctmgr show associations user=$USER"


def queue(jobs: Iterable[str]) -> list[str]:
    """Of all these jobs at once, also of those that have just ended."""
    return ["squeue", "--noheader", "--states=all", f"--jobs={','.join(sorted(jobs, key=int))}", "--format=%i|%T|%N|%e|%r"]


def named(execution_id: str) -> list[str]:
    """The user's jobs of this name that Slurm knows of."""
    return ["squeue", "--noheader", "--me", "--states=all", f"--name={name_of(execution_id)}", "--format=%i"]


def accounted(jobs: Iterable[str]) -> list[str]:
    """Of those that the controller has forgotten, from its accounts."""
    return ["sacct", "--noheader", "--parsable2", "--allocations", f"--starttime=now-{_ACCOUNTED_DAYS}days", f"--jobs={','.join(sorted(jobs, key=int))}",
            "--format=JobIDRaw,State,NodeList,End,Reason"]  # fmt: skip


def accounted_name(execution_id: str) -> list[str]:
    """The same from its accounts."""
    since = f"--starttime=now-{_ACCOUNTED_DAYS}days"
    return ["sacct", "--noheader", "--parsable2", "--allocations", since, f"--name={name_of(execution_id)}", "--format=JobIDRaw"]


def states(answer: str) -> dict[str, JobState]:
    """By job, in what `squeue` or `sacct` says: number, state, nodes, end, reason."""
    found = {}
    for line in answer.splitlines():
        job, state, nodes, end, reason = [*line.split("|", 4), "", "", "", ""][:5]
        if _JOB.fullmatch(job.strip()) and state:
            found[job.strip()] = JobState(
                state=state.split()[0],  # "CANCELLED by 0"
                nodes="" if nodes == "None assigned" else nodes, reason="" if reason == "None" else reason, ended_at=_moment(end),
            )  # fmt: skip
    return found


def _moment(written: str) -> float | None:
    with contextlib.suppress(ValueError, OverflowError):  # "Unknown", "N/A"
        return time.mktime(time.strptime(written, "%Y-%m-%dT%H:%M:%S"))
    return None


def cancel(job: str) -> list[str]:
    """One that waits; it is gone then."""
    return ["scancel", "--state=PENDING", job]


def ask_to_end(job: str) -> list[str]:
    """One that runs: a word to the entry point on the node, which gives the analysis its grace."""
    return ["scancel", "--batch", "--signal=TERM", job]


def remove(job: str) -> list[str]:
    """One of which nobody is to hear any more."""
    return ["scancel", job]


def remove_named(execution_id: str) -> list[str]:
    """Whatever job of the user's has the name of this execution."""
    return ["scancel", "--me", f"--name={name_of(execution_id)}"]


def verdict(state: JobState, job: str) -> tuple[EndReason, str]:
    """What it means that a job has ended and the entry point on the node has not said how."""
    on = f" on {state.nodes}" if state.nodes else ""
    told = f"Slurm says of job {job}{on}: {state.state}{f' ({state.reason})' if state.reason else ''}."
    match state.state:
        case "PREEMPTED":
            return EndReason.PREEMPTED, f"Ended to make room for a job that goes first. {told} Run it again."
        case "TIMEOUT" | "DEADLINE":
            return EndReason.WALL_TIME, f"Slurm ended the job at the time limit of its own. {told} Raise the wall time limit."
        case "OUT_OF_MEMORY":
            return EndReason.HOST_PRESSURE, f"The job ran out of the memory that it has beside the analysis. {told} Run it again."
        case "CANCELLED":
            return EndReason.CANCELED, f"Somebody canceled the job. {told}"
        case "NODE_FAIL" | "BOOT_FAIL":
            return EndReason.EXECUTOR_ERROR, f"The node was lost. {told} Run it again."
        case _:
            return EndReason.EXECUTOR_ERROR, f"The job ended without a word. {told} See slurm.log in the execution's folder."
