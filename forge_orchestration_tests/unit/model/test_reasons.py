"""The table of end reasons, compared with the design's, line by line."""

from __future__ import annotations

from forge_orchestration.model.reasons import EndReason, Status

# design, section 5; the first that holds wins, so their order is part of it
TABLE = [
    ("runtime_unhealthy", "refused", 4),
    ("sandbox_unavailable", "refused", 6),  # 3 where the host cannot: that is a HostError, without a record
    ("executor_error", "failed", 5),
    ("canceled", "canceled", 15),
    ("controller_lost", "lost", 5),
    ("preempted", "lost", 5),
    ("wall_time", "failed", 11),
    ("memory", "failed", 10),
    ("host_pressure", "lost", 5),
    ("pids", "failed", 12),
    ("scratch", "failed", 13),
    ("output_rejected", "failed", 14),
    ("signaled", "failed", 1),
    ("nonzero_exit", "failed", 1),
    ("completed", "succeeded", 0),
]


def test_the_table_and_its_order() -> None:
    assert [(reason.value, reason.status.value, reason.exit_status) for reason in EndReason] == TABLE


def test_the_statuses_and_which_are_final() -> None:
    assert {status.value: status.is_final for status in Status} == {
        "queued": False, "preparing": False, "running": False, "collecting": False,
        "succeeded": True, "failed": True, "canceled": True, "lost": True, "refused": True,
    }  # fmt: skip


def test_every_end_is_final() -> None:
    assert all(reason.status.is_final for reason in EndReason)
