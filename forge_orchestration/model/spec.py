"""What is asked for: one analysis as its author defined it, and one request to run it."""

from __future__ import annotations

from datetime import date
from typing import Any

import msgspec

from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.publication import Publication
from forge_orchestration.model.sections import CachePolicy

ParamValue = bool | int | float | str
DEFAULT_RUNTIME = "forge-python"
DEFAULT_EXECUTOR = "local"


class Param(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One parameter of an analysis: its type, its default, and the values it may take."""

    type: str
    default: ParamValue | None = None
    min: float | None = None
    max: float | None = None
    choices: list[ParamValue] | None = None
    description: str = ""


class InputSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where an input comes from: a path, `package://NAME/PATH` for a file inside the runtime, or `asset://NAME/OUTPUT` for
    an output of another analysis; or else a `url` and the `sha256` that its content must have; or else a `database` of the
    deployment's, all of it as it is then or what a `query` finds there.
    """

    path: str = ""
    database: str = ""
    query: str = ""
    url: str = ""
    sha256: str = ""
    description: str = ""


@compiled
class RetryWithMore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether an end for want of memory or of time is followed by an attempt with more of it.

    Attributes:
        attempts: At most, the first included; 1 is never.
        factor: What the limit is multiplied by, up to what the deployment allows.
    """

    attempts: int = 1
    factor: float = 2.0


@compiled
class Partitions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an analysis is cut into, an execution each: `keys`, windows of time, or keys that are added while it is in use.

    Attributes:
        keys: Names that are known when the analysis is written.
        every: `hour`, `day`, `week` or `month`, from `start` on.
        start: The day of the first window.
        dynamic: Name of a set of keys that Dagster keeps.
        per_run: Most of them in one run of a backfill; None: all.
    """

    keys: tuple[str, ...] = ()
    every: str = ""
    start: date | None = None
    dynamic: str = ""
    per_run: int | None = None


@compiled
class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage of an analysis; what it does not say is as the analysis says it.

    Attributes:
        inputs: As those of an analysis, and `stage://STAGE/OUTPUT` for an output of another stage.
        params: Names of the analysis' parameters that it uses; None: all. Of the others none decides its result.
        files: Names of the files and folders in the analysis' folder that it uses; none: all. Likewise.
    """

    command: tuple[str, ...]
    description: str = ""
    runtime: str = ""
    inputs: dict[str, InputSource] = {}
    outputs: dict[str, str] = {}
    checks: dict[str, str] = {}
    params: tuple[str, ...] | None = None
    files: tuple[str, ...] = ()
    limits: dict[str, Any] = {}
    env: dict[str, str] = {}
    threads: int | None = None


@compiled
class AnalysisDefinition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `analysis.yaml`, checked. `folder` is absolute; `name` is the folder's. It has a `command`, or else `stages`.

    `runtime_chosen_by` and `executor_chosen_by` say who decided: `analysis`, a rule of the settings, or `default`. `files` are those of the folder
    that are meant, if not all. `checks` says what each expects, by name. `publish` says, by name, which outputs go to a database or a folder;
    those of a stage are of its outputs. `schedule` is when Dagster runs it, as cron writes times, in UTC. `cache` is what is done with an earlier
    result, None: as the deployment's settings say. `deterministic`: its replay must be identical, and what
    makes programs differ from one run to the next is fixed. Of a Python function `function` is where it is: `module:qualified.name`; else empty.
    """

    name: str
    folder: str
    command: tuple[str, ...] = ()
    stages: dict[str, Stage] = {}
    files: tuple[str, ...] = ()
    function: str = ""
    description: str = ""
    group: str = "default"
    tags: tuple[str, ...] = ()
    runtime: str = DEFAULT_RUNTIME
    runtime_chosen_by: str = "analysis"
    executor: str = DEFAULT_EXECUTOR
    executor_chosen_by: str = "analysis"
    inputs: dict[str, InputSource] = {}
    outputs: dict[str, str] = {}
    checks: dict[str, str] = {}
    publish: dict[str, Publication] = {}
    partitions: Partitions | None = None
    schedule: str = ""
    params: dict[str, Param] = {}
    limits: dict[str, Any] = {}
    retry_with_more: RetryWithMore = RetryWithMore()
    env: dict[str, str] = {}
    threads: int = 1
    seed: int = 0
    priority: int = 0
    cache: CachePolicy | None = None
    deterministic: bool = False


@compiled
class AnalysisSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One request: everything that decides what an execution does, validated and complete.

    Attributes:
        name: Name of the analysis, or `exec` for a bare command.
        command: Program and arguments; a relative file is looked for in the analysis' folder.
        folder: The analysis' own files, absolute; None for a bare command.
        files: Those in the folder that are meant; none: all.
        function: `module:qualified.name` of the Python function that is called; empty for what has a command.
        inputs: Path on the host, or `package://…`, `asset://…`, `execution://…`, by input name.
        outputs: File name or pattern beneath `/forge/outputs`, by output name; each must match a file.
        group: Group of the analysis and, beside it, its tags: what a deployment's settings may pick it by.
        checks: Names of what the analysis must report to have passed or failed.
        publish: What of the outputs goes to a database or a folder once it has succeeded; it decides nothing of the result.
        partition: Key of the part that is meant; None of what has no parts.
        priority: Of those that wait for room, the highest is first; of the same, who came first.
        cache: What is done with an earlier result of the same fingerprint.
        checkpoints: Whether it goes on from one, and leaves some.
        chosen_by: Who decided `runtime`, `executor` …: `default`, `rule: …` of the settings, `analysis`, `op config`,
            `command line`, `caller`.
    """

    name: str
    command: tuple[str, ...]
    folder: str | None = None
    files: tuple[str, ...] = ()
    function: str = ""
    group: str = ""
    tags: tuple[str, ...] = ()
    runtime: str = DEFAULT_RUNTIME
    executor: str = DEFAULT_EXECUTOR
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    checks: tuple[str, ...] = ()
    publish: dict[str, Publication] = {}
    partition: str | None = None
    params: dict[str, ParamValue] = {}
    limits: Limits = Limits()
    retry_with_more: RetryWithMore = RetryWithMore()
    env: dict[str, str] = {}
    threads: int = 1
    seed: int = 0
    priority: int = 0
    cache: CachePolicy = "off"
    checkpoints: bool = True
    chosen_by: dict[str, str] = {}
    dagster_run_id: str | None = None
    dagster_step_key: str | None = None
    attempt: int = 1
    previous_execution_id: str | None = None
