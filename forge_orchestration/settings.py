"""The deployment's settings: where Forge lives, what it allows, what it defaults to.

Read once a process from `FORGE_HOME/settings.toml`; every value has a default, so the file need not exist.
Nothing but this and the sections reads the environment for its configuration.
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec

from forge_orchestration.errors import SpecError
from forge_orchestration.model.capacity import Capacity, updated_capacity
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.limits import Limits, updated_limits
from forge_orchestration.model.sections import (
    CgroupSettings,
    DatabaseSettings,
    DownloadSettings,
    ExecutorRule,
    GuardSettings,
    HealthSettings,
    HostCheckSettings,
    IdentitySettings,
    IsolationSettings,
    MessageSettings,
    MetricsSettings,
    NeighbourSettings,
    OutputSettings,
    PublicationSettings,
    ReuseSettings,
    RuntimeRule,
    SlurmSettings,
    SupervisionSettings,
)
from forge_orchestration.units import parse_bytes


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
    executor_rules: tuple[ExecutorRule, ...] = ()
    docker_host: str = "unix:///var/run/docker.sock"
    verify_max_age_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    protected_databases: dict[str, str] = {}
    guard: GuardSettings = GuardSettings()
    host_checks: HostCheckSettings = HostCheckSettings()
    identity: IdentitySettings = IdentitySettings()
    cgroup: CgroupSettings = CgroupSettings()
    slurm: SlurmSettings = SlurmSettings()
    messages: MessageSettings = MessageSettings()
    outputs: OutputSettings = OutputSettings()
    isolation: IsolationSettings = IsolationSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    neighbours: NeighbourSettings = NeighbourSettings()
    metrics: MetricsSettings = MetricsSettings()
    health: HealthSettings = HealthSettings()
    reuse: ReuseSettings = ReuseSettings()
    downloads: DownloadSettings = DownloadSettings()
    databases: dict[str, DatabaseSettings] = {}
    publication: PublicationSettings = PublicationSettings()

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
    def cache_dir(self) -> Path:
        """What can be had again: what host a fingerprint was of, downloads."""
        return self.home / "cache"

    @property
    def checkpoints_dir(self) -> Path:
        """What executions that did not succeed have left for the next of the same fingerprint, a folder each."""
        return self.home / "checkpoints"

    @property
    def publications_dir(self) -> Path:
        """A file an execution whose results have not all been published yet."""
        return self.home / "publications"

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
    "defaults", "maximum", "capacity", "allowed_input_roots", "analysis_folders", "runtime_folders", "runtime_rules", "executor_rules", "docker_host", "verify_max_age_s", "protected_databases",
    "guard", "host_checks", "identity", "cgroup", "slurm", "messages", "outputs", "supervision", "neighbours", "isolation", "metrics", "health", "reuse", "downloads", "databases", "publication",
)  # fmt: skip


def load_settings(home: Path | None = None) -> Settings:
    """The settings of the deployment at `home` (default: `forge_home()`).

    Raises:
        SpecError: `settings.toml` cannot be read, has an unknown key, or a value of the wrong type.
    """
    home = forge_home() if home is None else home
    path = home / "settings.toml"
    version = None
    try:
        facts = os.stat(path)
        version = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    except NotADirectoryError:
        raise SpecError(f"FORGE_HOME {home} is not a folder.", "Set FORGE_HOME to a folder that you may write.") from None
    except OSError:
        pass
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
    for section, ending in (("neighbours", "_bytes_per_s"), ("host_checks", "_bytes"), ("slurm", "_bytes")):
        if isinstance(table := raw.get(section), dict):
            values[section] = table | {
                key: parse_bytes(value, f"'{key}' in {path}") for key, value in table.items() if key.endswith(ending)
            }
    for section in ("downloads", "publication"):
        if isinstance(table := raw.get(section), dict) and "max" in table:
            values[section] = table | {"max": parse_bytes(table["max"], f"'max' in {path}")}
    # where results go in a deployment that says nothing of databases
    own = {"results": {"url": f"sqlite:///{home}/results.db", "tables": ["*"], "snapshots": True}}
    if isinstance(databases := raw.get("databases", {}), dict):
        values["databases"] = own | {
            name: one | {"max": parse_bytes(one["max"], f"'max' of database '{name}' in {path}")}
            if isinstance(one, dict) and "max" in one
            else one
            for name, one in databases.items()
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
