"""The deployment's settings: where Forge lives, what it allows, what it defaults to.

Read once a process from `FORGE_HOME/settings.toml`; every value has a default, so the file need not exist.
Nothing else in Forge reads the environment for its configuration.
"""

from __future__ import annotations

import functools
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from forge_orchestration.errors import SpecError
from forge_orchestration.model.capacity import Capacity, updated_capacity
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.cron import check_cron
from forge_orchestration.model.limits import Limits, updated_limits
from forge_orchestration.units import parse_bytes


class IdentitySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Host uids that executions get when Forge runs as root: `first_uid` up to `first_uid + count - 1`.

    Attributes:
        without_root: Who they are otherwise: uids that are set aside for the user in `/etc/subuid` (`subordinate_uid`), the user
            itself in a namespace (`user_namespace`), or the first of the two that can be had.
    """

    first_uid: Annotated[int, msgspec.Meta(ge=65536, le=2**31)] = 1_879_000_000
    count: Annotated[int, msgspec.Meta(ge=1, le=2**20)] = 1024
    without_root: Literal["auto", "subordinate_uid", "user_namespace"] = "auto"


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
        return named or name in self.analyses or group in self.groups or not set(tags).isdisjoint(self.tags)


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


@compiled
class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one deployment. `docs/settings.md` lists them with their keys."""

    home: Path
    defaults: Limits = Limits()
    maximum: Limits
    capacity: Capacity
    allowed_input_roots: tuple[Path, ...] = ()
    analysis_folders: tuple[Path, ...] = ()
    runtime_folders: tuple[Path, ...] = ()
    runtime_rules: tuple[RuntimeRule, ...] = ()
    docker_host: str = "unix:///var/run/docker.sock"
    verify_max_age_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    protected_databases: dict[str, str] = {}
    guard: GuardSettings = GuardSettings()
    host_checks: HostCheckSettings = HostCheckSettings()
    identity: IdentitySettings = IdentitySettings()
    cgroup: CgroupSettings = CgroupSettings()
    messages: MessageSettings = MessageSettings()
    outputs: OutputSettings = OutputSettings()
    isolation: IsolationSettings = IsolationSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    neighbours: NeighbourSettings = NeighbourSettings()
    metrics: MetricsSettings = MetricsSettings()
    health: HealthSettings = HealthSettings()

    @property
    def executions_dir(self) -> Path:
        """A folder an execution."""
        return self.home / "executions"

    @property
    def runtimes_dir(self) -> Path:
        """A folder a runtime, and in it one a build."""
        return self.home / "runtimes"

    @property
    def definitions_dir(self) -> Path:
        """Runtimes that `forge runtimes add` has defined, a folder each."""
        return self.home / "definitions"

    @property
    def scratch_dir(self) -> Path:
        """Workspaces of executions that run now, and formatted images that wait for one."""
        return self.home / "scratch"

    @property
    def store_path(self) -> Path:
        """The SQLite store."""
        return self.home / "store.db"

    @property
    def dagster_dir(self) -> Path:
        """Where `dagster.yaml` keeps Dagster's own storage."""
        return self.home / "dagster"

    @property
    def workers_dir(self) -> Path:
        """What is known of the processes that execute Dagster's runs, a folder a run."""
        return self.dagster_dir / "workers"


def forge_home() -> Path:
    """`FORGE_HOME`, or `forge` in the user's data folder."""
    if configured := os.environ.get("FORGE_HOME"):
        return Path(os.path.abspath(os.path.expanduser(configured)))
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(data) / "forge"


def _host_capacity() -> Capacity:
    """What all executions may use together when the settings do not say: four fifths of the memory, half of the processes.

    Processors are shared by weight and scratch grows with use, so neither is counted unless a deployment says so.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * 4 // 5 * os.sysconf("SC_PAGE_SIZE")
    kernel = (int(Path("/proc/sys/kernel", name).read_text()) for name in ("pid_max", "threads-max"))
    return Capacity(memory_bytes=memory, pids=min(kernel) // 2)


def _host_maximum(capacity: Capacity) -> Limits:
    """What a deployment allows one execution when its settings do not say: as much as it gives to all of them."""
    return Limits(
        memory_bytes=capacity.memory_bytes, cpus=capacity.cpus or float(os.cpu_count() or 1), pids=min(32_768, capacity.pids),
        wall_time_s=7 * 86_400.0, grace_s=600.0, scratch_bytes=min(256 * 2**30, capacity.scratch_bytes or 2**62),
        log_bytes=4 * 2**30, files=16_777_216, open_files=1_048_576,
    )  # fmt: skip


def _default_input_roots() -> tuple[Path, ...]:
    """Where people keep data. Never the system's own folders, nor Forge's (see `executions.inputs`)."""
    home = Path.home()
    return tuple(
        dict.fromkeys([home, *map(Path, ("/home", "/data", "/srv", "/mnt", "/media", "/scratch", "/work", "/tmp", "/var/tmp"))])
    )


_KEYS = (
    "defaults", "maximum", "capacity", "allowed_input_roots", "analysis_folders", "runtime_folders", "runtime_rules", "docker_host", "verify_max_age_s", "protected_databases",
    "guard", "host_checks", "identity", "cgroup", "messages", "outputs", "supervision", "neighbours", "isolation", "metrics", "health",
)  # fmt: skip


def load_settings(home: Path | None = None) -> Settings:
    """The settings of the deployment at `home` (default: `forge_home()`).

    Raises:
        SpecError: `settings.toml` cannot be read, has an unknown key, or a value of the wrong type.
    """
    home = forge_home() if home is None else home
    path = home / "settings.toml"
    if next((one for one in (home, *home.parents) if one.exists()), home).is_file():
        raise SpecError(f"FORGE_HOME {home} is not a folder.", "Set FORGE_HOME to a folder that you may write.")
    try:
        facts = os.stat(path)
        version = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    except OSError:
        version = None
    return _read_settings(home, path, version)


@functools.lru_cache(maxsize=8)
def _read_settings(home: Path, path: Path, _version: object) -> Settings:
    """Read once for each version of the file."""
    raw: dict[str, Any] = {}
    try:
        text = path.read_text("utf-8")
        import tomllib  # a deployment without settings does not pay for it, nor does a spawner

        raw = tomllib.loads(text)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise SpecError(f"The settings in {path} cannot be read: {error}.") from error
    for key in raw:
        if key not in _KEYS:
            raise SpecError(f"Unknown key '{key}' in {path}.", f"The keys are: {', '.join(_KEYS)}.")
    for section in ("defaults", "maximum", "capacity"):
        if not isinstance(raw.get(section, {}), dict):
            raise SpecError(f"'{section}' in {path} must be a table of limits.")
    values = dict(raw)
    values["home"] = str(home)
    capacity = updated_capacity(_host_capacity(), raw.get("capacity", {}), f"[capacity] of {path}")
    maximum = updated_limits(_host_maximum(capacity), raw.get("maximum", {}), f"[maximum] of {path}")
    # a default that nobody wrote is never more than what is allowed, or than what there is
    there = {name: getattr(capacity, name, None) or math.inf for name in Limits.__struct_fields__}
    lowered = Limits(
        **{name: min(getattr(Limits(), name), getattr(maximum, name), there[name]) for name in Limits.__struct_fields__}
    )
    values["defaults"] = msgspec.to_builtins(updated_limits(lowered, raw.get("defaults", {}), f"[defaults] of {path}"))
    values["maximum"] = msgspec.to_builtins(maximum)
    values["capacity"] = msgspec.to_builtins(capacity)
    for section, ending in (("neighbours", "_bytes_per_s"), ("host_checks", "_bytes")):
        if isinstance(table := raw.get(section), dict):
            values[section] = table | {
                key: parse_bytes(value, f"'{key}' in {path}") for key, value in table.items() if key.endswith(ending)
            }
    _check_written_paths(raw.get("guard"), path)
    values.setdefault("allowed_input_roots", [str(root) for root in _default_input_roots()])
    try:
        settings = msgspec.convert(values, Settings, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise SpecError(f"The settings in {path} are wrong: {error}.") from error
    _check_guard(settings, path)
    return settings


def _check_written_paths(guard: object, path: Path) -> None:
    """A relative path would be another one in each folder that a command is started in, and guard nothing."""
    paths = guard.get("paths") if isinstance(guard, dict) else None
    for one in paths if isinstance(paths, list) else ():
        if isinstance(one, str) and (not os.path.isabs(os.path.expanduser(one)) or "\0" in one):
            raise SpecError(f"[guard] in {path} has the path {one!r}; it must be absolute.")


def _check_guard(settings: Settings, path: Path) -> None:
    guard = settings.guard
    for name in guard.databases or ():
        if name not in settings.protected_databases:
            raise SpecError(f"[guard] in {path} names the database '{name}', which is not under [protected_databases].")
    for one in guard.paths:
        for busy in (settings.executions_dir, settings.scratch_dir, settings.store_path):
            if one.is_relative_to(busy) or busy.is_relative_to(one):
                raise SpecError(f"[guard] in {path} has the path {one}, which changes with each execution because of {busy}.")
    picks = guard.analyses or guard.groups or guard.tags
    if picks and not guard.paths and not (settings.protected_databases if guard.databases is None else guard.databases):
        raise SpecError(f"[guard] in {path} has nothing to look at: it needs paths, or databases under [protected_databases].")


def _decode_path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(os.path.abspath(os.path.expanduser(value)))
    raise ValueError(f"a path was expected, not {value!r}")


def make_home(settings: Settings) -> None:
    """Create `FORGE_HOME` and its folders, closed to other users.

    Raises:
        SpecError: A folder cannot be made.
    """
    try:
        for folder in (settings.home, settings.executions_dir, settings.runtimes_dir, settings.scratch_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.geteuid():  # what lies there is trusted: plans, claims, records
                raise SpecError(
                    f"FORGE_HOME {settings.home} cannot be used: {folder} belongs to another user.",
                    "Set FORGE_HOME to a folder of your own.",
                )
    except OSError as error:
        raise SpecError(
            f"FORGE_HOME {settings.home} cannot be used: {error.strerror}.",
            "Set FORGE_HOME to a folder that you may write.",
        ) from error
