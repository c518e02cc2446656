"""From what was observed to one end reason and one sentence."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from forge_orchestration.model.limits import Limits
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.record import Measured
from forge_orchestration.sandbox.cgroups.base import Counters
from forge_orchestration.sandbox.verdict import Observed, judge, wall_time_sentence

LIMITS = Limits(memory_bytes=256 * 2**20, pids=17, wall_time_s=90.0, grace_s=3.0, scratch_bytes=64 * 2**20)
PEAK = Measured(value=200 * 2**20, source="test")
OOM = Counters(oom_kills=1, memory_limit_hit=True, peak_memory_bytes=PEAK)
PRESSURE = Counters(oom_kills=1, memory_limit_hit=False, peak_memory_bytes=PEAK)
WELL = Observed(limits=LIMITS, exit_status=0, wall_s=1.5)

# one observation for each end reason that can be seen at the end of an execution that had begun, with words of its sentence
CASES: dict[EndReason, tuple[Observed, tuple[str, ...]]] = {
    EndReason.EXECUTOR_ERROR: (Observed(limits=LIMITS), ("lost",)),
    EndReason.CANCELED: (Observed(limits=LIMITS, exit_status=143, stops={EndReason.CANCELED: "Canceled."}), ("Canceled",)),
    EndReason.CONTROLLER_LOST: (
        Observed(limits=LIMITS, exit_status=137, stops={EndReason.CONTROLLER_LOST: "The controller ended."}),
        ("controller",),
    ),
    EndReason.PREEMPTED: (Observed(limits=LIMITS, exit_status=137, stops={EndReason.PREEMPTED: "Preempted."}), ("Preempted",)),
    EndReason.WALL_TIME: (
        Observed(limits=LIMITS, exit_status=143, stops={EndReason.WALL_TIME: wall_time_sentence(LIMITS, 90.04)}),
        ("90s", "90.0 s", "3s", "wall time limit"),
    ),
    EndReason.MEMORY: (Observed(limits=LIMITS, exit_status=137, counters=OOM), ("256.0 MiB", "200.0 MiB", "memory limit")),
    EndReason.HOST_PRESSURE: (Observed(limits=LIMITS, exit_status=137, counters=PRESSURE), ("host", "200.0 MiB", "256.0 MiB")),
    EndReason.PIDS: (Observed(limits=LIMITS, exit_status=1, counters=Counters(pids_refused=23)), ("17", "23", "pids limit")),
    EndReason.SCRATCH: (
        Observed(limits=LIMITS, exit_status=1, scratch_full=True, scratch_peak_bytes=63 * 2**20),
        ("64.0 MiB", "63.0 MiB", "scratch limit"),
    ),
    EndReason.OUTPUT_REJECTED: (msgspec.structs.replace(WELL, missing=("a.csv",)), ("a.csv", "$FORGE_OUTPUTS")),
    EndReason.SIGNALED: (Observed(limits=LIMITS, exit_status=139, signal=11), ("11", "SIGSEGV")),
    EndReason.NONZERO_EXIT: (Observed(limits=LIMITS, exit_status=3), ("status 3",)),
    EndReason.COMPLETED: (WELL, ("1.5s",)),
}


@pytest.mark.parametrize("reason", CASES)
def test_each_reason_alone(reason: EndReason) -> None:
    seen, words = CASES[reason]
    found, sentence = judge(seen)
    assert found is reason
    assert all(word in sentence for word in words), sentence
    assert sentence.endswith(".") and "\n" not in sentence


def test_those_without_a_case_are_decided_before_anything_runs() -> None:
    assert set(EndReason) - set(CASES) == {EndReason.RUNTIME_UNHEALTHY, EndReason.SANDBOX_UNAVAILABLE}


# of two that cannot be observed at once: an exit status is lost or known, a signal or a code, a group's own limit or one above it
EXCLUSIVE = ({EndReason.MEMORY, EndReason.HOST_PRESSURE}, {EndReason.SIGNALED, EndReason.NONZERO_EXIT})
PAIRS = [
    pair
    for pair in itertools.combinations(CASES, 2)
    if set(pair) not in EXCLUSIVE and not set(pair) & {EndReason.EXECUTOR_ERROR, EndReason.COMPLETED}
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_of_two_that_hold_the_first_in_the_table_wins(first: EndReason, second: EndReason) -> None:
    one, other = (
        msgspec.structs.replace(seen, stops={EndReason.OUTPUT_REJECTED: "The channel broke."}) if seen.missing else seen
        for seen in (CASES[first][0], CASES[second][0])
    )
    counters = Counters(
        oom_kills=one.counters.oom_kills | other.counters.oom_kills,
        memory_limit_hit=one.counters.memory_limit_hit or other.counters.memory_limit_hit,
        pids_refused=one.counters.pids_refused + other.counters.pids_refused,
        peak_memory_bytes=PEAK,
    )
    both = Observed(
        limits=LIMITS, stops={**other.stops, **one.stops}, exit_status=max(one.exit_status or 1, other.exit_status or 1), signal=one.signal or other.signal,
        counters=counters, scratch_full=one.scratch_full or other.scratch_full, missing=one.missing + other.missing,
    )  # fmt: skip
    assert judge(both)[0] is first
    assert list(EndReason).index(first) < list(EndReason).index(second)


def test_memory_wins_over_the_signal_it_came_with() -> None:
    assert judge(Observed(limits=LIMITS, exit_status=137, counters=OOM))[0] is EndReason.MEMORY


def test_a_killed_child_counts_even_if_the_command_ended_well() -> None:
    """The kernel killed a process of it: its result cannot be trusted, whatever its parent made of that."""
    assert judge(msgspec.structs.replace(WELL, counters=OOM))[0] is EndReason.MEMORY


@pytest.mark.parametrize(
    "seen",
    [msgspec.structs.replace(WELL, counters=Counters(pids_refused=9)), msgspec.structs.replace(WELL, scratch_full=True)],
    ids=["pids", "scratch"],
)
def test_an_analysis_that_coped_with_a_refusal_ended_well(seen: Observed) -> None:
    assert judge(seen)[0] is EndReason.COMPLETED


@pytest.mark.parametrize(
    ("highest", "reason"), [(17, EndReason.PIDS), (9, EndReason.HOST_PRESSURE), (None, EndReason.PIDS)],
    ids=["its own limit", "a limit above", "a kernel that does not say"],
)  # fmt: skip
def test_a_process_refused_by_a_limit_above_is_not_blamed_on_the_analysis(highest: int | None, reason: EndReason) -> None:
    peak = None if highest is None else Measured(value=highest, source="test")
    assert judge(Observed(limits=LIMITS, exit_status=1, counters=Counters(pids_refused=3, peak_pids=peak)))[0] is reason


def test_reaching_the_memory_limit_without_a_kill_is_no_failure() -> None:
    assert judge(msgspec.structs.replace(WELL, counters=Counters(memory_limit_hit=True)))[0] is EndReason.COMPLETED


@pytest.mark.parametrize("field", ["missing", "rejected"])
def test_what_is_missing_does_not_hide_why(field: str) -> None:
    seen = msgspec.structs.replace(WELL, exit_status=1, **{field: ("a.csv",)})
    assert judge(seen)[0] is EndReason.NONZERO_EXIT


def test_rejected_outputs_are_counted_and_the_first_named() -> None:
    reason, sentence = judge(msgspec.structs.replace(WELL, rejected=("a (it is a link)", "b (x)", "c (x)", "d (x)", "e (x)")))
    assert reason is EndReason.OUTPUT_REJECTED
    assert sentence.startswith("5 ") and "a (it is a link)" in sentence and "and 2 more" in sentence and "d (x)" not in sentence


def test_a_stop_that_the_analysis_survived_in_time_still_is_a_stop() -> None:
    """It handled SIGTERM and exited 0 within its grace: the wall limit was reached all the same."""
    seen = msgspec.structs.replace(WELL, stops={EndReason.WALL_TIME: wall_time_sentence(LIMITS, 90.0)})
    assert judge(seen)[0] is EndReason.WALL_TIME


@pytest.mark.parametrize(
    ("status", "words"), [(126, "cannot be executed"), (127, "not found"), (137, "SIGKILL"), (192, "SIGRTMAX"), (255, "255")]
)
def test_statuses_with_a_meaning_are_explained(status: int, words: str) -> None:
    assert words in judge(Observed(limits=LIMITS, exit_status=status))[1]


def test_a_signal_without_a_name_is_no_error() -> None:
    assert "signal 33" in judge(Observed(limits=LIMITS, exit_status=128 + 33, signal=33))[1]
