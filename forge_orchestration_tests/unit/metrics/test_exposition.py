"""The text that Prometheus reads: every value from the index, the last checks or what runs; hostile names harmless and few."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from forge_orchestration.errors import StoreError
from forge_orchestration.executions.folder import ExecutionFolder, new_execution_id
from forge_orchestration.executions.store import Store
from forge_orchestration.health import last
from forge_orchestration.metrics.exposition import exposition
from forge_orchestration.metrics.labels import OTHER, Names, clean
from forge_orchestration.model.health import CheckResult
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord, Usage
from forge_orchestration.settings import Settings, load_settings
from forge_orchestration_tests.unit.executions.test_statistics import measured, record
from forge_orchestration_tests.unit.metrics.conftest import HOSTILE, Index


def families(settings: Settings) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(exposition(settings).decode())}


def samples(settings: Settings, name: str) -> dict[tuple[str, ...], float]:
    """Value by label values, in the order of the labels' names."""
    found: dict[tuple[str, ...], float] = {}
    for family in families(settings).values():
        for sample in family.samples:
            if sample.name == name:
                key = tuple(value for _, value in sorted(sample.labels.items()))
                assert key not in found, "a series is told twice"
                found[key] = sample.value
    return found


def test_a_home_that_was_never_used(settings: Settings) -> None:
    found = families(settings)
    assert found["forge_executions"].type == "counter" and found["forge_executions"].samples == []
    assert samples(settings, "forge_active_executions") == {
        ("queued",): 0, ("preparing",): 0, ("running",): 0, ("collecting",): 0,
    }  # fmt: skip
    assert samples(settings, "forge_isolation_degraded") == {(): 0}
    assert all(family.documentation and family.name.startswith("forge_") for family in found.values())


def test_how_executions_ended(settings: Settings, index: Index) -> None:
    index(record(1), record(2, suspect=True), record(3, EndReason.MEMORY), record(4, None))
    assert samples(settings, "forge_executions_total") == {
        ("a", "completed", "local", "r", "succeeded"): 2, ("a", "memory", "local", "r", "failed"): 1,
    }  # fmt: skip
    assert samples(settings, "forge_suspect_executions_total") == {("a",): 1}
    assert samples(settings, "forge_isolation_degraded") == {(): 1}


def test_histograms_are_cumulative_and_end_in_all(settings: Settings, index: Index) -> None:
    index(*(record(number, usage=Usage(wall_s=measured(wall_s))) for number, wall_s in enumerate((0.05, 0.1, 30.0, 1e9))))
    buckets = {float(key[1]): value for key, value in samples(settings, "forge_execution_wall_seconds_bucket").items()}
    assert [buckets[bound] for bound in (0.1, 1.0, 10.0, 60.0, 604800.0, math.inf)] == [2, 2, 2, 3, 3, 4]
    assert samples(settings, "forge_execution_wall_seconds_count") == {("a", "r"): 4}
    assert samples(settings, "forge_execution_wall_seconds_sum") == {("a", "r"): pytest.approx(1e9 + 30.15)}


def test_use_against_limits(settings: Settings, index: Index) -> None:
    index(record())
    for resource, ratio in (("memory", 0.5), ("cpu", 0.25), ("scratch", 1.0)):
        name = f"forge_execution_{resource}_use_ratio"
        assert samples(settings, f"{name}_sum") == {("a",): ratio}
        buckets = {float(key[1]): value for key, value in samples(settings, f"{name}_bucket").items()}
        assert min(bound for bound, value in buckets.items() if value) == ratio, "a bucket holds its own bound"


class TestNames:
    def test_a_hostile_one_is_one_value_of_one_label(self, settings: Settings, index: Index) -> None:
        index(record(analysis=HOSTILE))
        ((analysis, *_),) = samples(settings, "forge_executions_total")
        assert analysis == clean(HOSTILE) and "\n" not in analysis and "\x1b" not in analysis and '"' in analysis
        assert families(settings)["forge_executions"].documentation == "Executions that ended."

    def test_no_more_than_so_many_and_none_is_lost(self, settings: Settings, index: Index) -> None:
        (settings.home / "settings.toml").write_text("[metrics]\nmax_label_values = 3")
        few = load_settings(settings.home)
        index(*(record(number, analysis=f"a{number}", runtime=None) for number in range(9)))
        found = samples(few, "forge_executions_total")
        assert {key[0]: value for key, value in found.items()} == {"a0": 1, "a1": 1, "a2": 1, OTHER: 6}
        assert samples(few, "forge_execution_memory_use_ratio_count") == {("a0",): 1, ("a1",): 1, ("a2",): 1, (OTHER,): 6}
        assert samples(few, "forge_execution_wall_seconds_count") == {
            ("a0", ""): 1, ("a1", ""): 1, ("a2", ""): 1, (OTHER, ""): 6,
        }  # fmt: skip

    def test_two_that_look_the_same_when_cut_are_one_series(self, settings: Settings, index: Index) -> None:
        index(
            record(1, analysis="x" * 500 + "1"),
            record(2, analysis="x" * 500 + "2"),
            record(3, analysis="\x01"),
            record(4, analysis="\x02"),
        )
        assert sorted(samples(settings, "forge_executions_total").values()) == [2, 2]
        assert sorted(samples(settings, "forge_execution_memory_use_ratio_count").values()) == [2, 2]

    def test_what_they_become(self) -> None:
        names = Names(["a", HOSTILE])
        assert (names("a"), names("b"), names("")) == ("a", OTHER, "")
        assert len(clean("x" * 10_000)) == 120 and clean("a\nb\ud800") == "a\ufffdb\ufffd"


def test_what_has_not_ended_is_as_its_record_says(settings: Settings, index: Index) -> None:
    """The index hears of begin and end alone."""
    for status in (Status.QUEUED, Status.RUNNING, Status.RUNNING, Status.COLLECTING, Status.SUCCEEDED):
        folder = ExecutionFolder(settings.executions_dir, new_execution_id())
        folder.create()
        folder.write_record(ExecutionRecord(execution_id=folder.id, analysis="a", status=status))
        index(ExecutionRecord(execution_id=folder.id, analysis="a"))
    index(ExecutionRecord(execution_id=new_execution_id(), analysis="a"))  # it has no record yet
    torn = ExecutionFolder(settings.executions_dir, new_execution_id())
    torn.create()
    torn.record_path.write_bytes(b'{"analysis": "\xff')
    index(ExecutionRecord(execution_id=torn.id, analysis="a"))
    assert samples(settings, "forge_active_executions") == {
        ("queued",): 1, ("preparing",): 0, ("running",): 2, ("collecting",): 1,
    }  # fmt: skip


def test_health_as_it_was_last_seen(settings: Settings) -> None:
    good = CheckResult(name="disk", target="host", passed=True)
    warning = CheckResult(name="memory", target="host", passed=False, severity="warning")
    rotten = CheckResult(name="outputs", target="storage", passed=False, corruption=True)
    assert last.keep(settings, [good, warning, rotten], "full") == ""
    assert samples(settings, "forge_check_passed") == {("disk", "host"): 1, ("memory", "host"): 0, ("outputs", "storage"): 0}
    assert samples(settings, "forge_failed_checks") == {("error",): 1, ("warning",): 1}
    assert samples(settings, "forge_corruption_findings") == {("host",): 0, ("storage",): 1}
    (at,) = {one.checked_at for one in last.read(settings)}
    assert set(samples(settings, "forge_check_timestamp_seconds").values()) == {at}
    assert set(samples(settings, "forge_check_changed_timestamp_seconds").values()) == {at}


def test_targets_that_look_the_same_when_cut_are_one_series(settings: Settings) -> None:
    last.keep(settings, [CheckResult(name="integrity", target="x" * 500 + one, passed=True) for one in "12"], "quick")
    assert list(samples(settings, "forge_check_passed").values()) == [1]


def test_a_torn_file_of_checks_is_no_check(settings: Settings) -> None:
    (settings.home / "health.json").write_text('{"version"')
    assert samples(settings, "forge_check_passed") == {}
    assert samples(settings, "forge_failed_checks") == {("error",): 0, ("warning",): 0}


def test_runtimes_by_state(settings: Settings) -> None:
    by_state = samples(settings, "forge_runtimes")
    assert set(by_state) == {("ready",), ("building",), ("unhealthy",), ("quarantined",), ("missing",)}
    assert by_state["missing",] == sum(by_state.values()) == len(samples(settings, "forge_runtime_ready")) > 0


def test_capacity(settings: Settings) -> None:
    assert samples(settings, "forge_claimed_memory_bytes") == {(): 0}
    assert samples(settings, "forge_capacity_memory_bytes")[()] > 0
    assert samples(settings, "forge_capacity_scratch_bytes") == {}, "what is not counted has no capacity"


def test_a_store_that_is_none_is_an_error_and_no_empty_answer(settings: Settings) -> None:
    settings.store_path.write_bytes(b"no database" * 500)
    with pytest.raises(StoreError):
        exposition(settings)


OPENED = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from pathlib import Path
from forge_orchestration.metrics.exposition import exposition
from forge_orchestration.settings import load_settings
settings = load_settings(Path(sys.argv[1]))
exposition(settings)  # modules are loaded
opened.clear()
sys.stdout.buffer.write(exposition(settings))
print("# opened", len([path for path in opened if path.startswith(str(settings.executions_dir))]), len(opened))
"""


def test_ten_thousand_executions_are_counted_without_opening_their_records(settings: Settings) -> None:
    """There are none to open; and the interpreter's own audit of what is opened says that none was tried."""
    store = Store(settings.store_path)
    ways = (EndReason.COMPLETED, EndReason.MEMORY, EndReason.WALL_TIME)
    store._db.execute("BEGIN")
    for number in range(10_000):
        store.save(record(number, ways[number % 3], analysis=f"analysis_{number % 7}"))
    store._db.execute("COMMIT")
    store.close()
    done = subprocess.run(
        [sys.executable, "-c", OPENED, str(settings.home)], capture_output=True, text=True, timeout=120, check=True
    )
    text, _, opened = done.stdout.rpartition("# opened ")
    totals = Counter[str]()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "forge_executions_total":
                totals[sample.labels["end_reason"]] += int(sample.value)
    assert totals == {"completed": 3334, "memory": 3333, "wall_time": 3333}
    records, files = map(int, opened.split())
    assert records == 0 and files < 50


def test_a_collector_may_be_registered_beside_others(settings: Settings, index: Index) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    from forge_orchestration.metrics.exposition import ForgeCollector

    registry = CollectorRegistry()
    registry.register(ForgeCollector(settings))
    index(msgspec.structs.replace(record()))
    assert b"forge_executions_total{" in generate_latest(registry)


def test_every_metric_is_documented(settings: Settings, index: Index) -> None:
    index(record())
    last.keep(settings, [CheckResult(name="disk", target="host", passed=True)], "quick")
    documented = Path(__file__).parents[3].joinpath("docs/metrics.md").read_text()
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families(settings).values()}
    assert len(names) > 20
    assert [name for name in names if f"`{name.replace('forge_capacity_', 'forge_claimed_')}`" not in documented] == []
