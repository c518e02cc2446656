"""The sections of `settings.toml`, each with its bounds and defaults. `docs/settings.md` says what they are for."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from forge_orchestration.errors import SpecError
from forge_orchestration.model.cron import check_cron
from forge_orchestration.units import parse_bytes

_SLURM_NAME = r"^[A-Za-z0-9_.,-]*$"

CachePolicy = Literal["use", "refresh", "off", "only"]
"""What is done with an earlier result of the same fingerprint: taken (`use`); not taken, and replaced by a new one (`refresh`);
neither taken nor replaced (`off`); or taken, and without one nothing is run (`only`)."""


class ReuseSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`policy`: what holds for analyses that say nothing. Bare commands are always run unless a caller asks otherwise."""

    policy: CachePolicy = "use"


class DownloadSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"max_bytes": "max"}):
    """Inputs that are fetched from the web.

    Attributes:
        hosts: Patterns of names of hosts from which inputs may come.
        max_bytes: Of one file.
        silence_s: For how long a server may say nothing.
        max_s: How long one file may take.
    """

    hosts: tuple[str, ...] = ("*",)
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 100 * 2**30
    silence_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    max_s: Annotated[float, msgspec.Meta(gt=0)] = 6 * 3600.0


class DatabaseSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"max_bytes": "max"}):
    """A database that results are added to, or that analyses are given snapshots of. No sandbox ever reaches it.

    Attributes:
        url: As SQLAlchemy writes it; `env:NAME` if the environment variable NAME holds it. It may be a secret.
        tables: Patterns of names of tables that results may be added to.
        snapshots: Whether analyses may be given what is in it, as it is at a moment.
        max_bytes: Of one snapshot.
    """

    url: str
    tables: tuple[str, ...] = ()
    snapshots: bool = False
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 2**30


class PublicationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"max_bytes": "max"}):
    """What is published of analyses' results.

    Attributes:
        folders: By name, where files may be put.
        max_bytes: Of an output that is loaded into a table.
        max_rows: Of one publication.
        retry_s: For how long a database is tried again that does not answer.
    """

    folders: dict[str, Path] = {}
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 2**30
    max_rows: Annotated[int, msgspec.Meta(ge=1)] = 10_000_000
    retry_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0


class IdentitySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Host uids that executions get when Forge runs as root: `first_uid` up to `first_uid + count - 1`.

    Attributes:
        without_root: Who they are otherwise: uids that are set aside for the user in `/etc/subuid` (`subordinate_uid`), the user
            itself in a namespace (`user_namespace`), or the first of the two that can be had.
    """

    first_uid: Annotated[int, msgspec.Meta(ge=65536, le=2**31)] = 1_879_000_000
    count: Annotated[int, msgspec.Meta(ge=1, le=2**20)] = 1024
    without_root: Literal["auto", "subordinate_uid", "user_namespace"] = "auto"


class SlurmSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Jobs of a Slurm cluster, whose nodes all see `FORGE_HOME`, inputs and runtimes at the same paths.

    Attributes:
        partition, account, qos: As `sbatch` takes them; empty: the cluster's own default.
        python: The interpreter that has Forge, on nodes; empty: this one's path.
        scratch_dir: Where workspaces are made on a node, best on a disk of its own; None: in `FORGE_HOME`.
        poll_s: Between two questions about all jobs that are waited for.
        record_s: How long the record of a job that has ended may take to be seen here.
        commands_per_minute: More of Slurm's commands a process does not give.
        array_size: As many executions at most are submitted as one job array; 1: each is a job of its own.
        spare_bytes, spare_s: What a job is given beside the limits of its execution, for the supervisor and for setting up.
    """

    partition: Annotated[str, msgspec.Meta(pattern=_SLURM_NAME)] = ""
    account: Annotated[str, msgspec.Meta(pattern=_SLURM_NAME)] = ""
    qos: Annotated[str, msgspec.Meta(pattern=_SLURM_NAME)] = ""
    python: str = ""
    scratch_dir: Path | None = None
    poll_s: Annotated[float, msgspec.Meta(ge=0.2, le=600)] = 2.0
    record_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 10.0
    commands_per_minute: Annotated[int, msgspec.Meta(ge=1, le=6000)] = 120
    array_size: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 500
    spare_bytes: Annotated[int, msgspec.Meta(ge=0)] = 256 * 2**20
    spare_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0


class CgroupSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`parent` is a delegated cgroup, relative to each controller's mount (v1) or to the v2 mount; empty: find one."""

    parent: Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9_@:-][A-Za-z0-9_.@:-]*(/|$))*$")] = ""


class MessageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Caps on what an analysis may say through `/forge/messages` before it is ended as `output_rejected`."""

    max_line_bytes: Annotated[int, msgspec.Meta(ge=256, le=2**24)] = 64 * 2**10
    max_count: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 8 * 2**20
    max_per_s: Annotated[int, msgspec.Meta(ge=1)] = 5_000


class OutputSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Caps on what is collected from `/forge/outputs`; what lies beyond them is listed as rejected."""

    max_files: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    max_depth: Annotated[int, msgspec.Meta(ge=1)] = 32


class IsolationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`may_be_off`: protections without which an execution may still start, each of which its record then names with the reason."""

    may_be_off: tuple[Literal["precedence"], ...] = ("precedence",)


class SupervisionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a local execution is watched.

    Attributes:
        on_controller_loss: `kill` or `continue`: what happens to an execution whose controller is gone.
        poll_s: Between two looks at counters for which the kernel sends no event.
        fork_bomb_grace_s: How long the kernel may go on refusing processes before the execution is ended.
        suspect_after: How many refused system calls make an execution `suspect`.
    """

    on_controller_loss: Literal["kill", "continue"] = "kill"
    poll_s: Annotated[float, msgspec.Meta(ge=0.001, le=10)] = 0.05
    fork_bomb_grace_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 2.0
    suspect_after: Annotated[int, msgspec.Meta(ge=1)] = 20


class NeighbourSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far executions stand back for the host's other work.

    Attributes:
        cpu_weight: Of all executions together, where any other group of the host has 100.
        cpu_slice_ms: How long a process computes before it is another's turn, if none that naps wants to; 0: the kernel's own.
        oom_score_adj: What is added for each process, in thousandths of the host's memory, when the host itself lacks memory.
        read_bytes_per_s, write_bytes_per_s, reads_per_s, writes_per_s: Of all executions together, on each disk; None: no limit.
    """

    cpu_weight: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10
    cpu_slice_ms: Annotated[float, msgspec.Meta(ge=0, le=100)] = 20.0
    oom_score_adj: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1000
    read_bytes_per_s: Annotated[int, msgspec.Meta(ge=1)] | None = None
    write_bytes_per_s: Annotated[int, msgspec.Meta(ge=1)] | None = None
    reads_per_s: Annotated[int, msgspec.Meta(ge=1)] | None = None
    writes_per_s: Annotated[int, msgspec.Meta(ge=1)] | None = None


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`max_label_values`: how many analyses, and how many runtimes, metrics name; those that came later are counted as one."""

    max_label_values: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100


_WEB_ADDRESS = r"https?://[^\s/?#]+[^\s]*"


class HealthSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often Dagster looks whether all is well, whom it tells, and whether it repairs.

    Attributes:
        quick_every_s: Between two quick looks. Dagster itself looks no oftener than every five seconds what is due.
        full_at: When everything is read, as cron writes it; empty: never.
        time_zone: Of `full_at`, by its name in the IANA database.
        repeat_s: After this time a result is reported again that has not changed.
        webhook_url: Who is told of changes; `env:NAME` if the environment variable NAME holds it. It may be a secret.
        repair: `auto`: a runtime that is not what was built is rebuilt without anyone asking for it.
    """

    quick_every_s: Annotated[int, msgspec.Meta(ge=5, le=86_400)] = 300
    full_at: str = "0 3 * * *"
    time_zone: str = "UTC"
    repeat_s: Annotated[float, msgspec.Meta(ge=0, le=31 * 86_400)] = 3600.0
    webhook_url: str = ""
    webhook_timeout_s: Annotated[float, msgspec.Meta(ge=0.1, le=20)] = 5.0
    repair: Literal["manual", "auto"] = "manual"

    def __post_init__(self) -> None:
        if self.full_at:
            check_cron(self.full_at)
        if self.time_zone != "UTC":
            _check_time_zone(self.time_zone)
        if not re.fullmatch(rf"({_WEB_ADDRESS}|env:[A-Za-z_][A-Za-z0-9_]*)?", self.webhook_url):
            raise ValueError(  # it is not repeated: it may be a secret
                "webhook_url must be a URL that begins with http:// or https://, or env:NAME with the name of an environment variable"
            )

    def webhook(self) -> str:
        """The webhook's URL; empty if there is none.

        Raises:
            SpecError: It is said to be in an environment variable, and is not.
        """
        if not self.webhook_url.startswith("env:"):
            return self.webhook_url
        name = self.webhook_url.removeprefix("env:")
        if not (url := os.environ.get(name, "")):
            raise SpecError(f"The environment variable {name} is not set, and [health] webhook_url says that it holds the URL.")
        if not re.fullmatch(_WEB_ADDRESS, url):
            raise SpecError(f"The environment variable {name} holds no URL that begins with http:// or https://.")
        return url


def _check_time_zone(name: str) -> None:
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"there is no time zone '{name}'; one is called Europe/Berlin, for instance") from None


class RuntimeRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which runtime analyses run in that name none themselves: those of `group`, or with `tag`, or both where both are given."""

    runtime: str
    group: str = ""
    tag: str = ""

    def __post_init__(self) -> None:
        if not self.group and not self.tag:
            raise ValueError(f"the rule for runtime '{self.runtime}' needs a group or a tag")

    def __str__(self) -> str:
        return " and ".join(f"{name} {value}" for name, value in (("group", self.group), ("tag", self.tag)) if value)

    def picks(self, group: str, tags: tuple[str, ...]) -> bool:
        """Whether the rule is for an analysis of this group with these tags."""
        return self.group in ("", group) and (not self.tag or self.tag in tags)


class ExecutorRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where analyses run that name no executor themselves: those of `group`, with `tag`, or whose memory limit is above `memory_over`.

    Where several are given all must hold. `memory_over` is written as a limit is, `16GiB`.
    """

    executor: str
    group: str = ""
    tag: str = ""
    memory_over: str = ""

    def __post_init__(self) -> None:
        if not self.group and not self.tag and not self.memory_over:
            raise ValueError(f"the rule for executor '{self.executor}' needs a group, a tag or memory_over")
        if self.memory_over:
            parse_bytes(self.memory_over, "memory_over")

    def __str__(self) -> str:
        told = [f"{name} {value}" for name, value in (("group", self.group), ("tag", self.tag)) if value]
        return " and ".join(told + ([f"more than {self.memory_over} of memory"] if self.memory_over else []))

    def picks(self, group: str, tags: tuple[str, ...], memory_bytes: float) -> bool:
        """Whether the rule is for an analysis of this group with these tags and this memory limit."""
        fits = self.group in ("", group) and (not self.tag or self.tag in tags)
        return fits and (not self.memory_over or memory_bytes > parse_bytes(self.memory_over, "memory_over"))


class GuardSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is looked at before and after certain executions.

    Attributes:
        analyses, groups, tags: Which executions; an analysis is guarded if one of them names it, all are with `"*"` in one.
        databases: Names under `protected_databases`; None: all.
        paths: Files and folders whose content must not change meanwhile.
        tier: How thoroughly databases are read.
        on_unreadable: Whether what cannot be looked at before the start refuses the execution, or is noted.
    """

    analyses: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    databases: tuple[str, ...] | None = None
    paths: tuple[Path, ...] = ()
    tier: Literal["quick", "full"] = "quick"
    on_unreadable: Literal["refuse", "note"] = "refuse"

    def __post_init__(self) -> None:
        if (self.paths or self.databases) and not (self.analyses or self.groups or self.tags):
            raise ValueError('nothing is guarded without analyses, groups or tags (["*"] for all)')

    def picks(self, name: str, group: str, tags: tuple[str, ...]) -> bool:
        """Whether executions of the analysis of this name, group and tags are guarded."""
        named = "*" in (*self.analyses, *self.groups, *self.tags)
        whole = name.partition(".")[0]  # of a stage
        return (
            named or name in self.analyses or whole in self.analyses or group in self.groups or not set(tags).isdisjoint(self.tags)
        )


class HostCheckSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From where on `forge doctor` and `forge health` warn of the host.

    Attributes:
        memory_pressure_percent: Of the last minute, in which some process waited for memory.
        load_per_cpu: Processes that run or wait for the disk, a processor, over five minutes.
        free_memory_bytes, free_disk_bytes: The least that is good.
        free_inodes_percent: Of the file system that holds `FORGE_HOME`.
        clock_jump_s: How far back the clock may have been set since the last look.
    """

    memory_pressure_percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 10.0
    load_per_cpu: Annotated[float, msgspec.Meta(gt=0)] = 4.0
    free_memory_bytes: Annotated[int, msgspec.Meta(ge=0)] = 2**30
    free_disk_bytes: Annotated[int, msgspec.Meta(ge=0)] = 2 * 2**30
    free_inodes_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 2.0
    clock_jump_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0
