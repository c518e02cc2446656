"""What is told of a check that stops passing, goes on not to, and passes again: each change once."""

from __future__ import annotations

from typing import Literal

from forge_orchestration.health.changes import Change, Trouble, compare
from forge_orchestration.model.health import CheckResult


def found(passed: bool, name: str = "seal", severity: Literal["error", "warning"] = "error", finding: str = "x") -> CheckResult:
    return CheckResult(name=name, target="r", passed=passed, severity=severity, finding=finding, remedy="" if passed else "repair")


class Watcher:
    """Looks again and again; a second passes between two looks."""

    def __init__(self) -> None:
        self.troubles: dict[str, Trouble] = {}
        self.now = 1000.0
        self.first = True

    def look(self, *results: CheckResult) -> list[tuple[str, str]]:
        self.now += 1
        self.troubles, self.changes = compare(self.troubles, results, self.now, first=self.first)
        self.first = False
        return [(change.check, change.change) for change in self.changes]


def test_each_change_is_told_once_with_the_time_of_its_beginning() -> None:
    watch = Watcher()
    assert watch.look(found(True)) == []
    assert watch.look(found(False, finding="a.py was edited")) == [("seal", "worse")]
    assert watch.changes == [
        Change(target="r", check="seal", change="worse", severity="error", finding="a.py was edited", remedy="repair", since=1002, at=1002)
    ]  # fmt: skip
    assert watch.look(found(False, finding="b.py was edited")) == []
    assert watch.look(found(True, finding="as sealed")) == [("seal", "better")]
    assert (watch.changes[0].since, watch.changes[0].at, watch.changes[0].finding) == (1002, 1004, "as sealed")
    assert watch.look(found(True)) == []
    assert watch.troubles == {}


def test_a_warning_that_becomes_an_error_is_worse_and_not_the_other_way_round() -> None:
    watch = Watcher()
    watch.look(found(True))
    assert watch.look(found(False, severity="warning")) == [("seal", "worse")]
    assert watch.look(found(False)) == [("seal", "worse")]
    assert watch.changes[0].since == 1002, "it has not passed since the warning"
    assert watch.look(found(False, severity="warning")) == []
    assert watch.look(found(True)) == [("seal", "better")]


def test_a_warning_at_the_first_look_is_how_it_is_and_an_error_is_not() -> None:
    watch = Watcher()
    assert watch.look(found(False, "disk", "warning"), found(False)) == [("seal", "worse")]
    assert watch.look(found(False, "disk", "warning"), found(False)) == []
    assert watch.look(found(True, "disk"), found(True)) == [("seal", "better")], "nobody was told that the disk was full"
    assert watch.look(found(False, "disk", "warning"), found(True)) == [("disk", "worse")]


def test_a_check_that_is_not_made_any_more_is_better_only_when_all_is_well() -> None:
    watch = Watcher()
    watch.look(found(True, "wal"))
    assert watch.look(found(False, "foreign_keys"), found(True, "integrity")) == [("foreign_keys", "worse")]
    assert watch.look(found(False, "integrity")) == [("integrity", "worse")], "and of the keys nobody knows"
    assert watch.look() == [], "nobody has looked"
    assert sorted(watch.troubles) == ["foreign_keys", "integrity"]
    assert sorted(watch.look(found(True, "connection"))) == [("foreign_keys", "better"), ("integrity", "better")]
