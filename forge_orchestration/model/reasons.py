"""Statuses, end reasons, and the exit status of `forge` for each: the table of the design, once."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where an execution stands. The last five are final."""

    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    COLLECTING = "collecting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    LOST = "lost"
    REFUSED = "refused"

    @property
    def is_final(self) -> bool:
        """Whether the record will not change any more."""
        return self in _FINAL


_FINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.LOST, Status.REFUSED})


class EndReason(StrEnum):
    """Why an execution ended; of several that hold, the first in this order is recorded."""

    RUNTIME_UNHEALTHY = "runtime_unhealthy"
    SANDBOX_UNAVAILABLE = "sandbox_unavailable"
    EXECUTOR_ERROR = "executor_error"
    CANCELED = "canceled"
    CONTROLLER_LOST = "controller_lost"
    PREEMPTED = "preempted"
    WALL_TIME = "wall_time"
    MEMORY = "memory"
    HOST_PRESSURE = "host_pressure"
    PIDS = "pids"
    SCRATCH = "scratch"
    OUTPUT_REJECTED = "output_rejected"
    SIGNALED = "signaled"
    NONZERO_EXIT = "nonzero_exit"
    COMPLETED = "completed"

    @property
    def status(self) -> Status:
        """The final status that goes with this reason."""
        return _TABLE[self][0]

    @property
    def exit_status(self) -> int:
        """The exit status of `forge run` and `forge exec`."""
        return _TABLE[self][1]


_TABLE: dict[EndReason, tuple[Status, int]] = {
    EndReason.RUNTIME_UNHEALTHY: (Status.REFUSED, 4),
    EndReason.SANDBOX_UNAVAILABLE: (Status.REFUSED, 6),
    EndReason.EXECUTOR_ERROR: (Status.FAILED, 5),
    EndReason.CANCELED: (Status.CANCELED, 15),
    EndReason.CONTROLLER_LOST: (Status.LOST, 5),
    EndReason.PREEMPTED: (Status.LOST, 5),
    EndReason.WALL_TIME: (Status.FAILED, 11),
    EndReason.MEMORY: (Status.FAILED, 10),
    EndReason.HOST_PRESSURE: (Status.LOST, 5),
    EndReason.PIDS: (Status.FAILED, 12),
    EndReason.SCRATCH: (Status.FAILED, 13),
    EndReason.OUTPUT_REJECTED: (Status.FAILED, 14),
    EndReason.SIGNALED: (Status.FAILED, 1),
    EndReason.NONZERO_EXIT: (Status.FAILED, 1),
    EndReason.COMPLETED: (Status.SUCCEEDED, 0),
}
