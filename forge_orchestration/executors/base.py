"""The contract between the engine and a backend that runs executions."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

import msgspec

from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.inputs import ResolvedInput
from forge_orchestration.executions.store import Store
from forge_orchestration.executors.admission import Admission
from forge_orchestration.model.reasons import Status
from forge_orchestration.model.record import Cleanup, ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.runtimes.catalog import ResolvedRuntime
from forge_orchestration.sandbox.plan import CheckpointPlan

LOG_READ_BYTES = 2**20


class ExecutorCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do. The conformance suite tests all that is claimed here.

    Attributes:
        limits: Those that it enforces, by their names in `analysis.yaml`: an end for want of each has its own reason.
        runtime_kinds: Kinds of runtime that it can use.
        reattach: Whether another process can take an execution over.
        network_modes: What an analysis may have of the network; `none` is no interface but its own loopback.
        where: Where executions run, in words.
        enforced_by: Who holds the limits, in words.
        cannot: What somebody might expect of it in vain, a sentence each.
    """

    limits: frozenset[str]
    runtime_kinds: frozenset[str]
    reattach: bool
    network_modes: frozenset[str] = frozenset({"none"})
    where: str = ""
    enforced_by: str = ""
    cannot: tuple[str, ...] = ()


class PreparedExecution(msgspec.Struct, frozen=True, kw_only=True):
    """An execution that has its folder, its checked inputs and its resolved runtime, and waits to be submitted."""

    folder: ExecutionFolder
    runtime: ResolvedRuntime
    inputs: tuple[ResolvedInput, ...]
    checkpoint: CheckpointPlan | None = None


class ExecutionHandle(msgspec.Struct, frozen=True, kw_only=True):
    """What identifies a submitted execution; `native_id` is the backend's name for it, and is in the record."""

    execution_id: str
    native_id: str


class ExecutionState(msgspec.Struct, frozen=True, kw_only=True):
    """How far an execution is, as far as the backend knows."""

    status: Status

    @property
    def is_final(self) -> bool:
        """Whether `collect` will give the final record."""
        return self.status.is_final


class AnalysisExecutor(ABC):
    """Runs executions somewhere. Every method may be called from any thread."""

    name: str
    capabilities: ExecutorCapabilities

    def warm_up(self) -> None:  # noqa: B027
        """Begin what takes time before the first `submit`, and return at once; by default there is nothing to begin."""

    def recover(self, store: Store) -> threading.Thread | None:
        """Begin to put right what dead processes left of this backend's executions, in a thread; None if there is nothing.

        Called once an engine, while its first execution runs. By default there is nothing.
        """
        return None

    @abstractmethod
    def check(self) -> None:
        """Whether executions can be submitted now.

        Raises:
            HostError, BackendUnavailableError: They cannot; the sentence says why and what to do.
        """

    def admission(self) -> Admission | None:
        """The queue before this backend, once `check` has passed; None if it has one of its own, or needs none."""
        return None

    @abstractmethod
    def submit(self, spec: AnalysisSpec, execution: PreparedExecution) -> ExecutionHandle:
        """Start it, and return once `native_id` is in its record. Submitting an execution a second time starts nothing.

        Raises:
            SubmitError: It was not started.
        """

    @abstractmethod
    def poll(self, handle: ExecutionHandle) -> ExecutionState:
        """How far it is. Never raises because an execution failed."""

    @abstractmethod
    def wait(self, handle: ExecutionHandle, timeout_s: float | None = None) -> ExecutionState:
        """Wait until it is final, or for `timeout_s`; returns the state then."""

    @abstractmethod
    def cancel(self, handle: ExecutionHandle) -> None:
        """Ask it to end, with the grace of its limits. Idempotent; returns before it has ended."""

    @abstractmethod
    def logs(self, handle: ExecutionHandle, stream: str, offset: int) -> bytes:
        """What `stdout`, `stderr` or `messages` holds from `offset` on, now: at most `LOG_READ_BYTES`, so ask until there is nothing."""

    @abstractmethod
    def collect(self, handle: ExecutionHandle) -> ExecutionRecord:
        """The final record, with outputs, usage and enforced limits. Idempotent.

        Raises:
            ExecutorError: The execution has not ended.
        """

    @abstractmethod
    def reattach(self, native_id: str, execution_id: str) -> ExecutionHandle:
        """A handle for an execution that another process submitted."""

    @abstractmethod
    def cleanup(self, handle: ExecutionHandle) -> Cleanup:
        """Remove what a dead or ended execution left running or lying about. Idempotent, possible after any crash."""
