"""Slurm's commands: what is asked, and how the answers are read. Pure; who runs them is `slurm`."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import time
from collections.abc import Iterable, Sequence

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
_JOB = re.compile(r"([0-9]+)(?:_([0-9]+))?")  # 17; or 17_3, a task of an array
_FOR_EVER = re.compile(
    r"violates accounting/QOS policy|invalid (partition|account|qos|feature|generic resource)|Requested node configuration is not available|"
    r"Memory specification can not be satisfied|More processors requested than permitted|User's group not permitted|"
    r"Access/permission denied|Invalid account or account/partition|time limit is invalid|Requested time limit is invalid|Invalid job array specification",
    re.IGNORECASE,
)


# the controller hangs up on whoever munge does not vouch for
_NOT_BELIEVED = re.compile(r"munge|credential|authentication|Zero Bytes were transmitted", re.IGNORECASE)
ANY_PARTITION = ["sinfo", "--noheader", "--format=%R"]
"""A question that whoever may use the cluster is answered; `scontrol ping` says that it is down also where it is not believed."""


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


def name_of(execution_ids: Sequence[str]) -> str:
    """What the job of an execution is called, or the array of several; by it a job is found again whose number was lost."""
    more = f"-and-{len(execution_ids) - 1}" if len(execution_ids) > 1 else ""
    return f"forge-{execution_ids[0]}{more}"


def task_of(job: str, number: int | None) -> str:
    """A task of an array; the job itself if it is none."""
    return job if number is None else f"{job}_{number}"


def native_id(job: str) -> str:
    """Of a job, as the record has it."""
    return f"slurm:{job}"


def job_of(native_id: str | None) -> str | None:
    """The job in a record's `native_id`."""
    word, _, job = (native_id or "").partition(":")
    return job if word == "slurm" and _JOB.fullmatch(job) else None


def resources(limits: Limits, settings: SlurmSettings) -> tuple[str, ...]:
    """What a job asks for, in the words of `sbatch`.

    Slurm's limits are wider than Forge's, which are set on the node and tell why an execution ended: memory by what supervisor
    and page cache of the runtime may take, time by the grace and by what setting up takes.
    """
    minutes = math.ceil((limits.wall_time_s + limits.grace_s + settings.spare_s) / 60)
    memory_mib = math.ceil((limits.memory_bytes + settings.spare_bytes) / _MIB)
    named = {"partition": settings.partition, "account": settings.account, "qos": settings.qos}
    return (
        "--nodes=1", "--ntasks=1", f"--cpus-per-task={max(1, math.ceil(limits.cpus))}", f"--mem={memory_mib}M", f"--time={minutes}",
        *(f"--{key}={value}" for key, value in named.items() if value),
    )  # fmt: skip


def submit(execution_ids: Sequence[str], asked: Iterable[str]) -> list[str]:
    """The `sbatch` command; the script is its input. Several executions are the tasks of one job array.

    Args:
        asked: `resources`, of each.
    """
    array = [f"--array=0-{len(execution_ids) - 1}"] if len(execution_ids) > 1 else []
    return [
        "sbatch", "--parsable", f"--job-name={name_of(execution_ids)}", *array, "--export=ALL", "--no-requeue",
        "--output=/dev/null", "--chdir=/", *asked,
    ]  # fmt: skip


def script(entry_point: Iterable[str], executions: str, execution_ids: Sequence[str], places: Iterable[str]) -> str:
    """What the job does: nothing but to start Forge's entry point on the node, in place of the shell.

    Args:
        executions: The folder in which each has its own.
        places: The other arguments of the entry point.
    """
    job = native_id("${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}")
    return f"""\
#!/bin/sh
export FORGE_NATIVE_ID="{job}" FORGE_NODE="$SLURMD_NODENAME"
set -- {" ".join(execution_ids)}
shift "${{SLURM_ARRAY_TASK_ID:-0}}"
folder={shlex.quote(executions)}/"$1"
exec {shlex.join(entry_point)} "$folder" {shlex.join(places)} >> "$folder/slurm.log" 2>&1
"""


def submitted(answer: str) -> str | None:
    """The job's number in what `sbatch --parsable` says (`123` or `123;cluster`); None if there is none."""
    found = answer.strip().partition(";")[0]
    return found if found.isdecimal() else None


def is_permanent(complaint: str) -> bool:
    """Whether what `sbatch` complains of will be the same next time."""
    return _FOR_EVER.search(complaint) is not None


def remedy(complaint: str) -> str:
    """What to do about it."""
    if re.search(r"node configuration|memory specification|more processors", complaint, re.IGNORECASE):
        return "Ask for less, or see what nodes there are: sinfo --Node --long"
    if _NOT_BELIEVED.search(complaint):
        return "See that the clocks of this host and of Slurm's agree to within five minutes, that munged runs, and that its key is theirs: timedatectl; munge -n | unmunge"
    if "array" in complaint:
        return "Lower array_size under [slurm] in settings.toml; the cluster's own is in: scontrol show config | grep MaxArraySize"
    if "time limit" in complaint.lower():
        return "Lower the wall time limit, or see what partitions allow: sinfo --long"
    return "See [slurm] in settings.toml, and: sinfo; scontrol ping; sacctmgr show associations user=$USER"


def queue(jobs: Iterable[str]) -> list[str]:
    """Of all these jobs at once, also of those that have just ended, each task of an array on its line."""
    return ["squeue", "--noheader", "--array", "--states=all", f"--jobs={_listed(jobs)}", "--format=%i|%T|%N|%e|%r"]


def named(name: str) -> list[str]:
    """The user's jobs of this name that Slurm knows of."""
    return ["squeue", "--noheader", "--me", "--states=all", f"--name={name}", "--format=%F"]


def accounted(jobs: Iterable[str]) -> list[str]:
    """Of those that the controller has forgotten, from its accounts."""
    return ["sacct", "--noheader", "--parsable2", "--allocations", f"--starttime=now-{_ACCOUNTED_DAYS}days", f"--jobs={_listed(jobs)}",
            "--array", "--format=JobID,State,NodeList,End,Reason"]  # fmt: skip


def accounted_name(name: str) -> list[str]:
    """The same from its accounts."""
    since = f"--starttime=now-{_ACCOUNTED_DAYS}days"
    return ["sacct", "--noheader", "--parsable2", "--allocations", since, f"--name={name}", "--format=JobID"]


def numbers(answer: str) -> list[str]:
    """The jobs in what `named` or `accounted_name` say, arrays by their own number: `17`, `17_3`, `17_[4-9]`."""
    return list(dict.fromkeys(word.partition("_")[0] for word in answer.split()))


def _listed(jobs: Iterable[str]) -> str:
    return ",".join(sorted(jobs, key=lambda job: [int(part) for part in job.split("_")]))


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
