"""What health checks found last: kept by several at once, never in the way of who looks."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from forge_orchestration.health import last
from forge_orchestration.model.health import CheckResult
from forge_orchestration.settings import Settings, load_settings


def check(name: str = "disk", target: str = "host", passed: bool = True, finding: str = "") -> CheckResult:
    return CheckResult(name=name, target=target, passed=passed, finding=finding)


def known(settings: Settings) -> dict[tuple[str, str], tuple[bool, str]]:
    return {one.key: (one.result.passed, one.tier) for one in last.read(settings)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, as a test says."""
    now = [100.0]
    monkeypatch.setattr("forge_orchestration.health.last.time.time", lambda: now[0])
    return now


def test_nothing_is_known_at_first(settings: Settings) -> None:
    assert last.read(settings) == []


def test_what_was_found_and_since_when_it_is_so(settings: Settings, clock: list[float]) -> None:
    assert last.keep(settings, [check(finding="17 GiB free"), check("memory")], "quick") == ""
    clock[0] = 200.0
    last.keep(settings, [check(finding="16 GiB free"), check("memory", passed=False)], "quick")
    disk, memory = last.read(settings)
    assert (disk.result.finding, disk.checked_at, disk.since) == ("16 GiB free", 200.0, 100.0)
    assert (memory.result.passed, memory.checked_at, memory.since) == (False, 200.0, 200.0)


def test_it_is_closed_to_others_and_whole(settings: Settings) -> None:
    last.keep(settings, [check()], "quick")
    assert os.stat(settings.home / "health.json").st_mode & 0o777 == 0o600
    assert json.loads((settings.home / "health.json").read_text())["version"] == 1


def test_a_look_at_one_target_says_nothing_of_another(settings: Settings) -> None:
    last.keep(settings, [check(), check("integrity", "storage")], "quick")
    last.keep(settings, [check(passed=False)], "quick")
    assert known(settings) == {("host", "disk"): (False, "quick"), ("storage", "integrity"): (True, "quick")}


def test_what_a_look_no_longer_says_is_forgotten(settings: Settings) -> None:
    """A check that is only made, or only told, when something is wrong would fail for ever."""
    last.keep(settings, [check("trial", passed=False), check()], "quick")
    last.keep(settings, [check()], "quick")
    assert known(settings) == {("host", "disk"): (True, "quick")}


def test_a_quick_look_does_not_overrule_what_a_full_one_found(settings: Settings) -> None:
    rotten = check("outputs", "storage", passed=False, finding="x has other content")
    last.keep(settings, [check("integrity", "storage"), rotten], "full")
    last.keep(settings, [check("integrity", "storage"), check("outputs", "storage")], "quick")
    assert known(settings) == {("storage", "integrity"): (True, "quick"), ("storage", "outputs"): (False, "full")}
    last.keep(settings, [check("integrity", "storage"), check("outputs", "storage")], "full")
    assert known(settings) == {("storage", "integrity"): (True, "full"), ("storage", "outputs"): (True, "full")}


def test_a_full_look_stands_for_a_quick_one_and_not_the_reverse(settings: Settings) -> None:
    last.keep(settings, [check("seal", "r", passed=False)], "quick")
    last.keep(settings, [check("content", "r")], "full")
    assert known(settings) == {("r", "content"): (True, "full")}
    last.keep(settings, [check("seal", "r")], "quick")
    assert set(known(settings)) == {("r", "content"), ("r", "seal")}


def test_what_was_made_anew_is_not_what_was_looked_at(settings: Settings, clock: list[float]) -> None:
    last.keep(settings, [check("content", "r", passed=False), check()], "full")
    last.forget(settings, "r", 50.0)
    assert ("r", "content") in known(settings)
    last.forget(settings, "r", 150.0)
    assert set(known(settings)) == {("host", "disk")}


def test_runtimes_and_databases_that_are_gone_are_not_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "defined" / "mine"
    folder.mkdir(parents=True)
    (folder / "runtime.toml").write_text('kind = "venv"\nlock = "l"')
    written = f'runtime_folders = ["{folder.parent}"]\n[protected_databases]\nlab = "sqlite:////x"\n'
    (tmp_path / "settings.toml").write_text(written)
    settings = load_settings(tmp_path)
    last.keep(settings, [check("seal", "mine"), check("integrity", "lab"), check(), check("new", "kind of target")], "quick")
    assert {target for target, _ in known(settings)} == {"mine", "lab", "host", "kind of target"}
    (tmp_path / "settings.toml").write_text("")
    assert {target for target, _ in known(load_settings(tmp_path))} == {"host", "kind of target"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"version": 1, "results": [{"tier": "quick"}]}', b'{"version": 1, "results": 5}',
     b'{"version": 1, "results": [{"result": {"name": "\xff"}}]}'],
)  # fmt: skip
def test_a_torn_file_says_that_nothing_is_known(settings: Settings, content: bytes) -> None:
    (settings.home / "health.json").write_bytes(content)
    assert last.read(settings) == []
    assert last.keep(settings, [check()], "quick") == ""
    assert set(known(settings)) == {("host", "disk")}


def test_what_cannot_be_written_is_a_sentence(settings: Settings) -> None:
    (settings.home / "health.json").mkdir()
    said = last.keep(settings, [check()], "quick")
    assert said.startswith("What was found is not kept") and str(settings.home) in said
    assert last.read(settings) == []
    last.forget(settings, "host", 1e12)


def _write(home: Path, number: int, times: int) -> None:
    settings = load_settings(home)
    for turn in range(times):
        assert last.keep(settings, [check(target=f"t{number}", finding=str(turn))], "quick") == ""


def test_several_processes_keep_at_once_and_none_is_lost(settings: Settings) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(settings.home, number, 25)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert {one.result.target: one.result.finding for one in last.read(settings)} == {f"t{number}": "24" for number in range(4)}
