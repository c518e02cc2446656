"""Limits: read from what people write, merged, compared with what is allowed, written back."""

from __future__ import annotations

import msgspec
import pytest

from forge_orchestration.errors import SpecError
from forge_orchestration.model.limits import LIMIT_KEYS, Limits, check_limits, limits_as_written, updated_limits

WRITTEN = {"memory": "1GiB", "cpus": "1.5", "pids": "64", "wall_time": "10min", "grace": "2s", "scratch": "100MiB", "log": "1MiB",
           "files": "1000", "open_files": 256}  # fmt: skip
READ = Limits(
    memory_bytes=2**30, cpus=1.5, pids=64, wall_time_s=600.0, grace_s=2.0, scratch_bytes=100 * 2**20, log_bytes=2**20,
    files=1000, open_files=256,
)  # fmt: skip


def test_the_defaults_of_the_design() -> None:
    assert Limits() == Limits(
        memory_bytes=2 * 2**30, cpus=1.0, pids=100, wall_time_s=1800.0, grace_s=5.0, scratch_bytes=2 * 2**30, log_bytes=64 * 2**20,
        files=131_072, open_files=4096,
    )  # fmt: skip


def test_every_limit_can_be_written() -> None:
    assert set(WRITTEN) == set(LIMIT_KEYS)
    assert updated_limits(Limits(), WRITTEN, "the test") == READ


@pytest.mark.parametrize("key", LIMIT_KEYS)
def test_one_that_is_written_changes_no_other(key: str) -> None:
    changed = updated_limits(Limits(), {key: WRITTEN[key]}, "the test")
    differing = [field for field in Limits.__struct_fields__ if getattr(changed, field) != getattr(Limits(), field)]
    assert len(differing) == 1 and differing[0].startswith(key)


def test_none_leaves_a_limit_as_it_is() -> None:
    assert updated_limits(READ, dict.fromkeys(LIMIT_KEYS), "the test") == READ


def test_the_last_one_who_says_something_wins() -> None:
    runtime = updated_limits(Limits(), {"memory": "1GiB", "pids": 20}, "runtime")
    analysis = updated_limits(runtime, {"pids": 30}, "analysis")
    assert (analysis.memory_bytes, analysis.pids, analysis.cpus) == (2**30, 30, 1.0)


@pytest.mark.parametrize("limits", [Limits(), READ, Limits(memory_bytes=12345678, wall_time_s=12.25, cpus=0.25, grace_s=0.0)])
def test_what_is_written_back_is_read_as_the_same(limits: Limits) -> None:
    assert updated_limits(Limits(pids=7), limits_as_written(limits), "the test") == limits


@pytest.mark.parametrize("seconds", [100000.0, 12345.678, 604799.0, 0.1234567])
def test_a_duration_written_back_is_the_same_duration(seconds: float) -> None:
    """Dagster's launchpad shows what is written back as the default, and a launch sends it again."""
    limits = Limits(wall_time_s=seconds)
    assert updated_limits(Limits(), limits_as_written(limits), "the test").wall_time_s == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory", "lots"), ("memory", "-1GiB"), ("memory", -1), ("memory", True), ("memory", [1]), ("memory", "1MiB"), ("memory", 0),
        ("scratch", "4 blocks"), ("scratch", "1KiB"), ("log", "10B"), ("log", float("nan")), ("memory", float("inf")),
        ("cpus", "two"), ("cpus", "nan"), ("cpus", float("nan")), ("cpus", float("inf")), ("cpus", 0), ("cpus", -1), ("cpus", True),
        ("cpus", None.__class__), ("cpus", "1e9"), ("cpus", 10**400), ("cpus", ""),
        ("pids", 1.5), ("pids", "1.5"), ("pids", -3), ("pids", 3), ("pids", "many"), ("pids", True), ("pids", "²"), ("pids", ""),
        ("pids", "-100"), ("pids", [100]), ("pids", "9" * 5000),
        ("wall_time", "soon"), ("wall_time", "-1min"), ("wall_time", 0), ("wall_time", "1ms"), ("wall_time", float("nan")),
        ("grace", -1), ("grace", "5 seconds"), ("grace", "∞"),
    ],
    ids=lambda value: ascii(value)[:14],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence_that_names_the_limit(key: str, value: object) -> None:
    with pytest.raises(SpecError) as caught:
        updated_limits(Limits(), {key: value}, "the command line")
    assert f"'{key}'" in caught.value.message and "the command line" in caught.value.message
    assert "\n" not in str(caught.value)


def test_an_unknown_limit_is_named_with_those_that_exist() -> None:
    with pytest.raises(SpecError, match="'memroy'.*memory, cpus, pids"):
        updated_limits(Limits(), {"memroy": "1GiB"}, "the test")


@pytest.mark.parametrize("field", Limits.__struct_fields__)
def test_more_than_the_deployment_allows_is_refused(field: str) -> None:
    maximum = READ
    check_limits(READ, maximum)
    above = msgspec.structs.replace(READ, **{field: getattr(READ, field) + 1})
    with pytest.raises(SpecError, match=f"'{field.removesuffix('_bytes').removesuffix('_s')}'.*allows") as caught:
        check_limits(above, maximum)
    assert "[maximum]" in caught.value.hint
