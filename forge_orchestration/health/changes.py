"""What has become worse or better since the last look: each change is told once, however often one looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from forge_orchestration.model.health import CheckResult

_RANK = {"warning": 1, "error": 2}


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """A check that does not pass.

    Attributes:
        since: When it was first seen so, seconds since the epoch.
        told: Whether it was a change that somebody was told of.
    """

    target: str
    check: str
    severity: Literal["error", "warning"]
    since: float
    told: bool


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change of one check.

    Attributes:
        change: `worse` if it no longer passes, or what was a warning is an error; `better` if it passes again.
        finding: What was found, one sentence.
        since: When it was first seen not to pass, seconds since the epoch.
        at: When this was seen.
    """

    target: str
    check: str
    change: Literal["worse", "better"]
    severity: Literal["error", "warning"]
    finding: str
    remedy: str
    since: float
    at: float

    @property
    def sentence(self) -> str:
        """For a log."""
        if self.change == "better":
            return f"{self.target} is better: {self.check} passes again: {self.finding}"
        return f"{self.target} is worse: {self.check}: {self.finding.rstrip('.')}." + (
            f" Remedy: {self.remedy}" if self.remedy else ""
        )


def compare(
    troubles: Mapping[str, Trouble], results: Sequence[CheckResult], now: float, *, first: bool
) -> tuple[dict[str, Trouble], list[Change]]:
    """The troubles of one target after another look at it, and what has changed.

    A check that is no longer made (the file that it read is gone) is better only once all that is made passes.

    Args:
        troubles: Those of this target until now, by check.
        first: Nobody has looked at it before: a warning is how it is then, and no change.
    """
    kept: dict[str, Trouble] = {}
    changes: list[Change] = []
    for result in (one for one in results if not one.passed):
        before = troubles.get(result.name)
        worse = before is None or _RANK[result.severity] > _RANK[before.severity]
        told = worse and not (first and result.severity == "warning")
        since = before.since if before else now
        if told:
            changes.append(_change(result, "worse", result.severity, since, now))
        kept[result.name] = Trouble(
            target=result.target, check=result.name, severity=result.severity, since=since, told=told or bool(before and before.told)
        )  # fmt: skip
    found = {result.name: result for result in results}
    gone = [trouble for name, trouble in troubles.items() if name not in kept]
    for trouble in gone:
        if trouble.check not in found and (kept or not results):
            kept[trouble.check] = trouble
        elif trouble.told:
            passed = found.get(trouble.check) or _all_well(trouble.target, trouble.check, results)
            changes.append(_change(passed, "better", trouble.severity, trouble.since, now))
    return kept, changes


def _change(
    result: CheckResult, change: Literal["worse", "better"], severity: Literal["error", "warning"], since: float, now: float
) -> Change:
    return Change(
        target=result.target, check=result.name, change=change, severity=severity, finding=result.finding, remedy=result.remedy,
        since=since, at=now,
    )  # fmt: skip


def _all_well(target: str, check: str, results: Iterable[CheckResult]) -> CheckResult:
    return CheckResult(name=check, target=target, passed=True, finding="; ".join(result.finding for result in results))
