"""The metrics, in Prometheus' text format: read from the store, the last checks and what runs, anew at each scrape.

`docs/metrics.md` lists them. Nothing is added up in this process, so it does not matter which one is asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from forge_orchestration import __version__
from forge_orchestration.executions import statistics
from forge_orchestration.executions.statistics import Grouped, Spread
from forge_orchestration.executions.store import Store
from forge_orchestration.health import last
from forge_orchestration.metrics import present
from forge_orchestration.metrics.labels import Names, clean
from forge_orchestration.model.reasons import Status
from forge_orchestration.runtimes.catalog import RuntimeState
from forge_orchestration.settings import Settings, make_home

WALL_BUCKETS_S = (0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 21600.0, 86400.0, 604800.0)
QUEUE_BUCKETS_S = (0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
USE_BUCKETS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
_HISTOGRAMS: tuple[tuple[str, str, Spread, tuple[float, ...], tuple[Grouped, ...]], ...] = (
    ("forge_execution_wall_seconds", "Wall time of executions that ended.", "wall_s", WALL_BUCKETS_S, ("analysis", "runtime")),
    ("forge_execution_queue_seconds", "From the request to the start.", "queue_s", QUEUE_BUCKETS_S, ("analysis",)),
    ("forge_execution_memory_use_ratio", "Peak memory by the memory limit.", "memory_use", USE_BUCKETS, ("analysis",)),
    ("forge_execution_cpu_use_ratio", "Processor time by wall time and limit.", "cpu_use", USE_BUCKETS, ("analysis",)),
    ("forge_execution_scratch_use_ratio", "Peak scratch by the scratch limit.", "scratch_use", USE_BUCKETS, ("analysis",)),
)
_RESOURCES = {
    "memory_bytes": ("memory_bytes", "Sum of the memory limits of executions"),
    "scratch_bytes": ("scratch_bytes", "Sum of the scratch limits of executions"),
    "pids": ("processes", "Sum of the process limits of executions"),
    "cpus": ("cpu_cores", "Sum of the processor limits of executions"),
    "executions": ("executions", "Number of executions"),
}


def exposition(settings: Settings) -> bytes:
    """All metrics as text.

    Raises:
        ForgeError: The store or the catalog cannot be read.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ForgeCollector(settings))
    return generate_latest(registry)


class ForgeCollector(Collector):
    """Everything about one deployment; may be registered with a registry of one's own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> Iterator[Metric]:
        """All families."""
        make_home(self._settings)
        info = GaugeMetricFamily("forge_build_info", "1; the label says which Forge this is.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        with closing(Store(self._settings.store_path)) as store:
            yield from _ended(store, self._settings)
            yield from _active(store, self._settings)
        yield from _health(self._settings)
        yield from _runtimes(self._settings)
        yield from _capacity(self._settings)


def _ended(store: Store, settings: Settings) -> Iterator[Metric]:
    most = settings.metrics.max_label_values
    names = {column: Names(statistics.first_values(store, column, most)) for column in get_args(Grouped)}
    executions: dict[tuple[str, ...], int] = defaultdict(int)
    suspect: dict[str, int] = defaultdict(int)
    for one in statistics.ended(store):
        analysis, runtime = names["analysis"](one.analysis), names["runtime"](one.runtime)
        executions[analysis, runtime, clean(one.executor), one.status, one.end_reason] += one.number
        suspect[analysis] += one.suspect
    labels = ["analysis", "runtime", "executor", "status", "end_reason"]
    total = CounterMetricFamily("forge_executions", "Executions that ended.", labels=labels)
    for values, count in sorted(executions.items()):
        total.add_metric(values, count)
    yield total
    odd = CounterMetricFamily("forge_suspect_executions", "Those that were refused many system calls.", labels=["analysis"])
    for analysis, count in sorted(suspect.items()):
        odd.add_metric([analysis], count)
    yield odd
    for name, text, value, bounds, by in _HISTOGRAMS:
        yield _histogram(store, name, text, value, bounds, by, names)
    degraded = GaugeMetricFamily("forge_isolation_degraded", "1 if the newest execution did without some protection.")
    degraded.add_metric([], bool(statistics.protections_off(store)))
    yield degraded


def _histogram(
    store: Store, name: str, text: str, value: Spread, bounds: Sequence[float], by: Sequence[Grouped], names: dict[str, Names]
) -> Metric:
    counts: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0] * (len(bounds) + 2))
    for one in statistics.distribution(store, value, bounds, by):
        group = tuple(names[column](part) for column, part in zip(by, one.group, strict=True))
        counts[group] = [a + b for a, b in zip(counts[group], (*one.at_most, one.number, one.sum), strict=True)]
    family = HistogramMetricFamily(name, text, labels=list(by))
    marks = [*map(str, bounds), "+Inf"]
    for group, (*at_most, total) in sorted(counts.items()):
        family.add_metric(group, list(zip(marks, at_most, strict=True)), total)
    return family


def _active(store: Store, settings: Settings) -> Iterator[Metric]:
    found = [record.status for record in present.active(store, settings)]
    family = GaugeMetricFamily("forge_active_executions", "Executions that have not ended, now.", labels=["status"])
    for status in Status:
        if not status.is_final:
            family.add_metric([status], found.count(status))
    yield family


def _health(settings: Settings) -> Iterator[Metric]:
    labels = ["target", "check"]
    passed = GaugeMetricFamily("forge_check_passed", "1 if the check passed when it last looked, 0 if not.", labels=labels)
    looked = GaugeMetricFamily("forge_check_timestamp_seconds", "When the check last looked.", labels=labels)
    changed = GaugeMetricFamily("forge_check_changed_timestamp_seconds", "Since when it is as it is.", labels=labels)
    failed = GaugeMetricFamily("forge_failed_checks", "Checks that did not pass.", labels=["severity"])
    corrupt = GaugeMetricFamily("forge_corruption_findings", "Checks that found corruption.", labels=["target"])
    severities, damaged = {"error": 0, "warning": 0}, defaultdict[str, int](int)
    series = {tuple(map(clean, last_result.key)): last_result for last_result in last.read(settings)}  # no series is told twice
    for key, one in series.items():
        passed.add_metric(key, one.result.passed)
        looked.add_metric(key, one.checked_at)
        changed.add_metric(key, one.since)
        damaged[key[0]] += one.result.corruption
        if not one.result.passed:
            severities[one.result.severity] += 1
    for severity, count in severities.items():
        failed.add_metric([severity], count)
    for target, count in damaged.items():
        corrupt.add_metric([target], count)
    yield from (passed, looked, changed, failed, corrupt)


def _runtimes(settings: Settings) -> Iterator[Metric]:
    found = present.runtimes(settings)
    states = GaugeMetricFamily("forge_runtimes", "Runtimes of the catalog.", labels=["state"])
    for state in get_args(RuntimeState):
        states.add_metric([state], sum(one.state == state for one in found))
    yield states
    ready = GaugeMetricFamily("forge_runtime_ready", "1 if executions may use the runtime, 0 if not.", labels=["runtime"])
    for one in found:
        ready.add_metric([clean(one.name)], one.state == "ready")
    yield ready


def _capacity(settings: Settings) -> Iterator[Metric]:
    for resource, (claimed, capacity) in present.shares(settings).items():
        name, text = _RESOURCES[resource]
        taken = GaugeMetricFamily(f"forge_claimed_{name}", f"{text} that run.")
        taken.add_metric([], claimed)
        yield taken
        if capacity is not None:
            there = GaugeMetricFamily(f"forge_capacity_{name}", f"{text} that there may be at one time.")
            there.add_metric([], capacity)
            yield there
