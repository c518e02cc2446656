"""Partitions in `analysis.yaml`, keys of requests, and what becomes of them: the same keys as Dagster has."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import pytest

from forge_orchestration.analyses import read_definition, spec_from_definition
from forge_orchestration.analyses.partitions import checked_partition
from forge_orchestration.errors import SpecError
from forge_orchestration.model.spec import AnalysisDefinition, Partitions
from forge_orchestration.orchestration.analysis_assets import analysis_asset, assets_of
from forge_orchestration.orchestration.definitions import analysis_assets
from forge_orchestration.orchestration.launchable import Launchable, launchable
from forge_orchestration.orchestration.partitions import partitions_definition
from forge_orchestration.settings import Settings


def definition(partitions: Partitions | None) -> AnalysisDefinition:
    return AnalysisDefinition(name="a", folder="/x", command=("c",), partitions=partitions)


def read(folder: Path, text: str) -> AnalysisDefinition:
    (folder / "analysis.yaml").write_text(f"command: [x]\n{text}\n")
    return read_definition(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cut").mkdir()
    return tmp_path / "cut"


def test_what_can_be_written(folder: Path) -> None:
    assert read(folder, "partitions: {keys: [a, 'b c', ü]}").partitions == Partitions(keys=("a", "b c", "ü"))
    found = read(folder, "partitions: {every: week, start: 2026-01-01, per_run: 5}").partitions
    assert found == Partitions(every="week", start=date(2026, 1, 1), per_run=5)
    assert read(folder, "partitions: {dynamic: samples}").partitions == Partitions(dynamic="samples")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "is not exactly one of keys, every and dynamic"),
        ("{keys: [a], dynamic: b}", "is not exactly one of keys, every and dynamic"),
        ("{keys: [a, a]}", "names a key twice"),
        ("{keys: ['']}", "has the key ''"),
        ("{keys: ['a...b']}", "has the key 'a...b'"),
        ('{keys: ["a\\nb"]}', "has the key 'a\\nb'"),
        ("{keys: [1]}", "Expected `str`, got `int`"),
        (f"{{keys: [{'k' * 251}]}}", "at most 250 characters"),
        ("{every: day}", "has only one of every and start"),
        ("{keys: [a], start: 2026-01-01}", "has only one of every and start"),
        ("{every: year, start: 2026-01-01}", "is no window. There are: hour, day, week, month."),
        ("{every: day, start: soon}", "start"),
        ("{keys: [a], per_run: 0}", "'per_run' of"),
        ("{keys: [a], size: 1}", "unknown field `size`"),
    ],
)
def test_what_cannot(folder: Path, text: str, sentence: str) -> None:
    with pytest.raises(SpecError) as told:
        read(folder, f"partitions: {text}")
    assert sentence in str(told.value)


@pytest.mark.parametrize("every", ["hour", "day", "week", "month"])
def test_windows_are_those_of_dagster(every: str) -> None:
    partitions = Partitions(every=every, start=date(2026, 1, 1))
    keys = partitions_definition(partitions).get_partition_keys(datetime(2026, 3, 20, tzinfo=UTC))
    assert len(keys) >= 2
    for key in (keys[0], keys[-1]):
        assert checked_partition(definition(partitions), key) == key


@pytest.mark.parametrize(
    ("every", "key"),
    [("hour", "2026-01-01"), ("hour", "2026-01-01-00:30"), ("day", "2025-12-31"), ("day", "2026-13-01"), ("day", "2026-1-2"), ("hour", "2026-01-01-3:00"), ("week", "2026-01-05"), ("month", "2026-02-02")],
)  # fmt: skip
def test_and_nothing_else_is_one(every: str, key: str) -> None:
    with pytest.raises(SpecError):
        checked_partition(definition(Partitions(every=every, start=date(2026, 1, 1))), key)


def test_a_key_must_be_named_where_there_are_partitions() -> None:
    for partitions in (
        Partitions(keys=tuple("abcdefghijklm")),
        Partitions(dynamic="d"),
        Partitions(every="day", start=date(2026, 1, 1)),
    ):
        with pytest.raises(SpecError, match="names none. Name one"):
            checked_partition(definition(partitions), None)
    with pytest.raises(SpecError, match="and 3 more"):
        checked_partition(definition(Partitions(keys=tuple("abcdefghijklm"))), "z")
    assert checked_partition(definition(Partitions(dynamic="d")), "anything") == "anything"
    assert checked_partition(definition(None), None) is None
    with pytest.raises(SpecError, match="has no partitions"):
        checked_partition(definition(None), "a")


def test_a_path_has_the_key_in_its_place(folder: Path, settings: Settings) -> None:
    found = read(folder, "inputs: {a: {path: 'd/{partition}/{partition}.txt'}, b: {path: /x}}\npartitions: {dynamic: d}")
    spec = spec_from_definition(found, settings, partition="k")
    assert spec.inputs == {"a": f"{folder}/d/k/k.txt", "b": "/x"}
    assert spec.partition == "k"
    for key in ("../../etc/shadow", "a/b", ".."):
        with pytest.raises(SpecError):
            spec_from_definition(found, settings, partition=key)
    found = read(folder, "inputs: {a: {path: 'd/{partition}.txt'}}")
    with pytest.raises(SpecError, match="wants a partition, and the analysis has none"):
        spec_from_definition(found, settings)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("schedule: daily", "'schedule' in"),
        ("schedule: '0 25 * * *'", "is no hour"),
        ("schedule: '*/90 * * * *'", "is no minute"),
        ("schedule: '0 3 * * *'\nparams: {n: {type: int}}", "needs a default for parameter 'n'"),
        ("schedule: '0 3 * * *'\npartitions: {keys: [a]}", "cannot know which partition is meant"),
    ],
)
def test_a_schedule_that_cannot_be(folder: Path, text: str, sentence: str) -> None:
    with pytest.raises(SpecError) as told:
        read(folder, text)
    assert sentence in str(told.value)


def test_nor_can_one_whose_day_never_comes(folder: Path, settings: Settings) -> None:
    with pytest.raises(SpecError, match="no time that ever comes"):
        assets_of(read(folder, "schedule: '0 0 31 2 *'"), settings, ["forge-python"], ["local"])


@pytest.mark.parametrize(
    ("read_by", "of", "sentence"),
    [
        (
            "partitions: {keys: [a]}",
            "partitions: {every: day, start: 2026-01-01}",
            "is not cut into the same partitions as 'upper'",
        ),
        ("partitions: {every: week, start: 2026-01-01}", "partitions: {every: day, start: 2026-01-01}", "is not cut into the same"),
        ("", "partitions: {keys: [a]}", "has no partitions, and reads 'upper', which has some"),
        ("partitions: {keys: [a]}", "", None),
        ("partitions: {keys: [a]}", "partitions: {keys: [a, b]}", None),
    ],
)
def test_what_is_cut_otherwise_cannot_be_read(
    tmp_path: Path, settings: Settings, read_by: str, of: str, sentence: str | None
) -> None:
    folders = {name: tmp_path / name for name in ("upper", "lower")}
    for name, text in (("upper", of), ("lower", f"inputs: {{x: {{path: 'asset://upper/y'}}}}\n{read_by}")):
        folders[name].mkdir()
        read(folders[name], f"runtime: forge-python\noutputs: {{y: y}}\n{text}")
    assets = analysis_assets(folders, settings, ["forge-python"])
    with dg.instance_for_test():
        launchable(assets).get_repository_def()  # which Dagster would refuse as a whole
    told = assets[1].assets[0].descriptions_by_key[assets[1].assets[0].key] or ""
    assert (sentence in told) if sentence else ("cannot be used" not in told), told


def test_a_schedule_runs_the_last_window_that_is_over(folder: Path, settings: Settings) -> None:
    assert ticked(read(folder, "schedule: '0 3 * * *'"), settings, datetime(2026, 1, 5, 3, tzinfo=UTC)) == [None]
    windows = read(folder, "schedule: '0 3 * * *'\npartitions: {every: day, start: 2026-01-03}")
    assert ticked(windows, settings, datetime(2026, 1, 5, 3, tzinfo=UTC)) == ["2026-01-04"]
    assert ticked(windows, settings, datetime(2026, 1, 3, 3, tzinfo=UTC)) == []


def ticked(definition: AnalysisDefinition, settings: Settings, at: datetime) -> list[str | None]:
    """Partitions of the runs that its schedule asks for at a moment."""
    asset = analysis_asset(definition, settings, [definition.runtime], ["local"])
    with dg.instance_for_test() as instance:  # which Dagster asks while it makes a repository
        repository = launchable([Launchable(definition.name, [asset], definition)]).get_repository_def()
        (schedule,) = repository.schedule_defs
        assert (schedule.name, schedule.cron_schedule, schedule.execution_timezone) == ("cut_schedule", "0 3 * * *", "UTC")
        context = dg.build_schedule_context(instance, scheduled_execution_time=at, repository_def=repository)
        return [run.partition_key for run in schedule.evaluate_tick(context).run_requests]
