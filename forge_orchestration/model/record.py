"""The record: what is known of one execution. `record.json` holds it; its schema is in `docs/record.schema.json`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.guard import GuardFacts
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.publication import PublishedFacts
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.sections import CachePolicy


class RuntimeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime that was used: what it is (`content_digest`) and what it was verified against (`seal_digest`)."""

    name: str
    kind: str
    build: str = ""
    content_digest: str
    seal_digest: str
    verified_at: float
    chosen_by: str = "default"
    python: str | None = None


class InputFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An input as it was bound into the sandbox. `sha256` of a folder is over its sorted paths and contents.

    `taken_at` says when a snapshot of a database was taken, seconds since the epoch; None of anything else.
    """

    name: str
    source: str
    sha256: str
    bytes: int
    taken_at: float | None = None


class CodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The analysis' own files: digest over sorted names and contents, and where git knows them."""

    sha256: str
    git_commit: str | None = None
    git_dirty: bool | None = None


class OutputFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A collected output. `name` is the declared name, or its path when it was not declared; `path` is relative."""

    name: str
    path: str
    sha256: str
    bytes: int


class RejectedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Something in the outputs folder that is not kept. Bytes that are not UTF-8 are written with backslash escapes."""

    path: str
    why: str


class LogFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One log stream: where it is, how much was kept, how much was dropped because of the limit."""

    path: str
    bytes: int = 0
    truncated_bytes: int = 0


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A number and where it was read: a kernel file, `rusage`, the supervisor's clock."""

    value: float
    source: str


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel measured for the whole process tree; None where nothing measured it."""

    wall_s: Measured | None = None
    cpu_user_s: Measured | None = None
    cpu_system_s: Measured | None = None
    peak_memory_bytes: Measured | None = None
    peak_pids: Measured | None = None
    io_read_bytes: Measured | None = None
    io_write_bytes: Measured | None = None
    peak_scratch_bytes: Measured | None = None


class Enforced(msgspec.Struct, frozen=True, kw_only=True):
    """A limit as read back from where it is enforced, after it was set and before the command started."""

    value: float
    source: str


class Isolation(msgspec.Struct, frozen=True, kw_only=True):
    """How the execution was isolated: the identity's form, and each protection `on` or `off: why`."""

    mode: str
    uid: int
    protections: dict[str, str]


class Cleanup(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed after the end, and when that was done."""

    scratch_bytes_freed: int = 0
    processes_killed: int = 0
    cgroup_removed: bool = False
    mounts_removed: int = 0
    finished_at: float | None = None


class CacheFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an earlier result was reused, and whose.

    Attributes:
        policy: What was asked for: `use`, `refresh`, `off` or `only`.
        hit: Nothing was run: outputs, logs, metadata and checks are those of `source_execution_id`.
        why: One sentence: what was reused, or why nothing was.
        reusable: Whether a later execution of the same fingerprint may take this one's result; None: nobody has looked yet whether
            its inputs were the same to the end. What was found once stands.
    """

    policy: CachePolicy = "off"
    hit: bool = False
    source_execution_id: str | None = None
    why: str = ""
    reusable: bool | None = None


class CheckpointFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the execution went on from, and what it left for the next.

    Attributes:
        resumed_from: Execution whose checkpoint it was given; None: it began anew.
        resumed_bytes: Size of that.
        kept: Whether a checkpoint of its own is there for the next execution of the same fingerprint.
        why: One sentence: why a checkpoint that is there was not given to it, or why none could be kept.
    """

    resumed_from: str | None = None
    resumed_bytes: int = 0
    kept: bool = False
    why: str = ""


@compiled
class CheckFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an analysis says that one of its checks found: its claim, which nobody has verified."""

    name: str
    passed: bool
    severity: Literal["error", "warning"] = "error"
    message: str = ""
    values: dict[str, Any] = {}


@compiled
class ExecutionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to run an analysis. Times are seconds since the epoch, UTC; sizes are bytes."""

    schema_version: int = 1
    execution_id: str
    analysis: str
    attempt: int = 1
    previous_execution_id: str | None = None
    executor: str = "local"
    native_id: str | None = None
    host: str = ""
    dagster_run_id: str | None = None
    dagster_step_key: str | None = None
    partition: str | None = None
    status: Status = Status.QUEUED
    end_reason: EndReason | None = None
    message: str = ""
    exit_code: int | None = None
    signal: int | None = None
    runtime: RuntimeFacts | None = None
    command: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    seed: int = 0
    threads: int = 1
    chosen_by: dict[str, str] = {}
    inputs: list[InputFacts] = []
    code: CodeFacts | None = None
    limits: Limits = Limits()
    enforced: dict[str, Enforced] = {}
    isolation: Isolation | None = None
    violations: dict[str, int] | str = "not counted"
    suspect: bool = False
    guard: GuardFacts | None = None
    usage: Usage = Usage()
    outputs: list[OutputFacts] = []
    rejected_outputs: list[RejectedOutput] = []
    metadata: dict[str, Any] = {}
    checks: list[CheckFacts] = []
    published: list[PublishedFacts] = []
    logs: dict[str, LogFacts] = {}
    cleanup: Cleanup = Cleanup()
    fingerprint: str | None = None
    fingerprint_parts: dict[str, str] = {}
    cache: CacheFacts = CacheFacts()
    checkpoint: CheckpointFacts | None = None
    queued_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    folder: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether the analysis completed and everything it declared was collected."""
        return self.status is Status.SUCCEEDED

    @property
    def unpublished(self) -> list[PublishedFacts]:
        """What was to be published and could not be."""
        return [one for one in self.published if one.at is None]

    @property
    def why_unpublished(self) -> str:
        """The same as people are told; empty if there is nothing."""
        what = "; ".join(f"publication '{one.name}': {one.error}" for one in self.unpublished)
        return f"The analysis has succeeded, and its result could not be published: {what}" if what else ""

    def with_guard(self, guard: GuardFacts) -> ExecutionRecord:
        """The same with what was found of what is guarded."""
        return msgspec.structs.replace(self, guard=guard, suspect=self.suspect or guard.is_suspect)

    @property
    def wants_second_look(self) -> bool:
        """Whether it was guarded and has run, and what is guarded has not been looked at since."""
        guard = self.guard
        return guard is not None and self.started_at is not None and guard.after_at is None and not guard.why_not_after

    def to_json(self, indent: int = 2) -> str:
        """The record as `record.json` holds it."""
        return msgspec.json.format(msgspec.json.encode(self), indent=indent).decode()


def record_from_json(data: bytes | str) -> ExecutionRecord:
    """Read a record back; fields that a newer Forge added are ignored.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: The text is no record.
    """
    return msgspec.json.decode(data, type=ExecutionRecord)
