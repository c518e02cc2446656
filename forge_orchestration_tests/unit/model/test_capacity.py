"""What all executions may use together, as a person writes it, and what can never fit."""

from __future__ import annotations

import pytest

from forge_orchestration.errors import SpecError
from forge_orchestration.model.capacity import CAPACITY_KEYS, COUNTED, Capacity, check_capacity, updated_capacity
from forge_orchestration.model.limits import Limits

BASE = Capacity(memory_bytes=2**30, pids=50)


def test_only_what_is_written_changes() -> None:
    assert updated_capacity(BASE, {}, "x") == BASE
    assert updated_capacity(BASE, {"memory": "3GiB"}, "x") == Capacity(memory_bytes=3 * 2**30, pids=50)
    written = {"memory": "1MiB", "pids": 5, "scratch": "2GiB", "cpus": "1.5", "executions": 2}
    assert set(written) == set(CAPACITY_KEYS)
    changed = Capacity(memory_bytes=2**23, pids=5, scratch_bytes=2**31, cpus=1.5, executions=2)
    assert updated_capacity(BASE, written | {"memory": "8MiB"}, "x") == changed


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"wall_time": "5s"}, "wall_time"), ({"memory": -1}, "memory"), ({"memory": True}, "memory"), ({"cpus": "many"}, "cpus"),
     ({"executions": True}, "executions"), ({"executions": "3"}, "executions"), ({"executions": -1}, "executions")],
)  # fmt: skip
def test_a_mistake_names_the_key(changes: dict, words: str) -> None:
    with pytest.raises(SpecError, match=f"{words}.* in the file"):
        updated_capacity(BASE, changes, "the file")


@pytest.mark.parametrize(
    ("limits", "capacity", "words"),
    [
        ({"memory_bytes": 2**30 + 1}, {}, "'memory' asks for 1.0 GiB memory"),
        ({"pids": 51}, {}, "'pids' asks for 51 processes"),
        ({"scratch_bytes": 11}, {"scratch_bytes": 10}, "'scratch' asks for 11 B scratch"),
        ({"cpus": 2.5}, {"cpus": 2.0}, "'cpus' asks for 2.5 cores"),
    ],
)
def test_what_can_never_fit_is_refused_with_both_numbers(limits: dict, capacity: dict, words: str) -> None:
    asked = {"memory_bytes": 2**30, "pids": 50, "scratch_bytes": 2**40, "cpus": 100.0}
    check_capacity(Limits(**asked | dict.fromkeys(capacity, 1)), Capacity(memory_bytes=2**30, pids=50, **capacity))
    with pytest.raises(SpecError, match="can never start") as caught:
        check_capacity(Limits(**asked | limits), Capacity(memory_bytes=2**30, pids=50, **capacity))
    assert words in str(caught.value) and "[capacity]" in caught.value.hint


def test_all_that_is_counted_is_a_limit() -> None:
    assert set(COUNTED) <= set(Limits.__struct_fields__) and set(COUNTED) <= set(Capacity.__struct_fields__)
