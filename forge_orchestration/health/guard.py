"""What a deployment guards, looked at before and after one execution, and what is not as it was.

A sandboxed execution cannot write to any of it. So a finding is most likely the doing of another program of the host, and says so: it
tells when, and which executions ran then, never who did it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import msgspec

from forge_orchestration.errors import HostError, StoreError
from forge_orchestration.executions.store import Store
from forge_orchestration.executions.window import ran_meanwhile
from forge_orchestration.health.databases import database_checks
from forge_orchestration.health.protected_paths import look_at, shown
from forge_orchestration.model.guard import FileState, GuardFacts, GuardFinding, Verdict
from forge_orchestration.model.health import CheckResult
from forge_orchestration.settings import Settings

_OF_CONTENT = ("integrity", "foreign_keys", "checksum_failures", "read")
_MOST_FILES_NAMED = 100
_MOST_OTHERS_NAMED = 5
_NOUNS = {"file": "a file", "folder": "a folder", "link": "a link to", "other": "a device, pipe or socket"}
_MISSING = FileState(kind="missing")
_Databases = dict[str, dict[str, CheckResult]]


class Guard:
    """The two looks around one execution; what the first found is kept here until the second."""

    def __init__(self, settings: Settings, execution_id: str) -> None:
        self._settings, self._execution_id = settings, execution_id
        chosen = settings.guard.databases
        self._names = tuple(settings.protected_databases) if chosen is None else chosen
        self._databases: _Databases = {}
        self._files: dict[str, FileState] = {}
        self._facts = GuardFacts()

    def __str__(self) -> str:
        counts = ((len(self._names), "database"), (len(self._settings.guard.paths), "path"))
        return " and ".join(f"{count} guarded {noun}{'s' if count > 1 else ''}" for count, noun in counts if count)

    def look_before(self) -> GuardFacts:
        """The first look.

        Raises:
            HostError: Something cannot be looked at, and the settings refuse that.
            ForgeError: Nothing can.
        """
        guard, began = self._settings.guard, time.time()
        self._databases, self._files = self._look()
        findings = list(self._found_before())
        if guard.on_unreadable == "refuse" and (lost := [one for one, unreadable in findings if unreadable]):
            more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
            raise HostError(
                f"What is guarded cannot be looked at before the start, so nothing was started: {lost[0].target}: {lost[0].what}{more}.",
                'Repair it, or set on_unreadable = "note" under [guard] in settings.toml.',
            )
        files = [state for state in self._files.values() if state.kind == "file"]
        self._facts = GuardFacts(
            databases=list(self._names), tier=guard.tier, paths=[shown(str(path)) for path in guard.paths], files=len(files),
            bytes=sum(state.bytes or 0 for state in files), before_at=began, before_s=_since(began),
            findings=[msgspec.structs.replace(one, what=f"before the start: {one.what}") for one, _ in findings],
        )  # fmt: skip
        return self._facts

    def look_after(self, store: Store) -> GuardFacts:
        """The second look, once the execution has ended.

        Raises:
            ForgeError: Nothing can be looked at.
        """
        began = time.time()
        databases, files = self._look()
        found = list(self._after(databases, files))
        others = self._others(store) if found else []
        findings = [finding if unreadable else _attributed(finding, others) for finding, unreadable in found]
        return msgspec.structs.replace(
            self._facts, after_at=began, after_s=_since(began), findings=[*self._facts.findings, *findings]
        )

    def _others(self, store: Store) -> list[str] | None:
        """Who ran between the two looks as well; None if that is not known."""
        try:
            return ran_meanwhile(store, self._settings.executions_dir, self._facts.before_at, time.time(), self._execution_id)
        except StoreError:
            return None

    def _look(self) -> tuple[_Databases, dict[str, FileState]]:
        guard = self._settings.guard
        databases: _Databases = {name: {} for name in self._names}
        for result in database_checks(self._settings, full=guard.tier == "full", only=self._names):
            # a driver's or a server's own words are among them
            databases[result.target][result.name] = msgspec.structs.replace(result, finding=shown(result.finding))
        return databases, look_at(guard.paths)

    def _found_before(self) -> Iterator[tuple[GuardFinding, bool]]:
        """What was wrong before anything ran, and whether that is for want of a look."""
        for name, results in self._databases.items():
            for result in _failed(results):
                yield GuardFinding(target=name, what=result.finding, verdict="before"), _is_unreadable(result)
        for path, state in self._files.items():
            if state.kind in ("missing", "unreadable"):
                what = "is not there" if state.kind == "missing" else "cannot be read"
                yield GuardFinding(target=shown(path), what=what, verdict="before", before=state), True

    def _after(self, databases: _Databases, files: dict[str, FileState]) -> Iterator[tuple[GuardFinding, bool]]:
        """What is not as it was, with verdicts as if nobody else had been there, and whether that is only for want of a look."""
        for name, results in databases.items():
            before = self._databases[name]
            known = not any(_is_unreadable(result) for result in before.values())
            for result in _failed(results):
                earlier = before.get(result.name)
                if earlier is not None and not earlier.passed:
                    continue  # told already
                verdict: Verdict = "suspect"
                if _is_unreadable(result) and result.severity == "warning":
                    what = f"could not be looked at afterwards: {result.finding}"
                elif not known or (earlier is None and result.name != "connection"):
                    what = f"{result.finding}; it was not looked at before"
                else:
                    what = f"{result.finding}; before the start it was whole"
                    verdict = "corrupted" if result.severity == "error" else "suspect"
                yield GuardFinding(target=name, what=what, verdict=verdict), _is_unreadable(result) and result.severity == "warning"
        yield from self._files_after(files)

    def _files_after(self, files: dict[str, FileState]) -> Iterator[tuple[GuardFinding, bool]]:
        pairs = {
            path: (self._files.get(path, _MISSING), files.get(path, _MISSING)) for path in sorted(self._files.keys() | files.keys())
        }
        closed = {path for path, pair in pairs.items() if any(state.kind == "unreadable" for state in pair)}
        changed = [
            (path, before, after)
            for path, (before, after) in pairs.items()
            if not before.same_content(after) and not any(above in closed for above in _above(path))
        ]
        for path, before, after in changed[:_MOST_FILES_NAMED]:
            verdict: Verdict = "suspect" if path in closed else "changed"
            finding = GuardFinding(target=shown(path), what=_change(before, after), verdict=verdict, before=before, after=after)
            yield finding, path in closed
        if len(changed) > _MOST_FILES_NAMED:
            what = f"{len(changed) - _MOST_FILES_NAMED} more files are not as they were"
            yield GuardFinding(target=", ".join(self._facts.paths), what=what, verdict="changed"), False


def _failed(results: dict[str, CheckResult]) -> list[CheckResult]:
    """The checks of a database that say something of its content, or that there was no look at it."""
    return [one for one in results.values() if not one.passed and (one.name in _OF_CONTENT or _is_unreadable(one))]


def _is_unreadable(result: CheckResult) -> bool:
    """Whether nobody could look; a file of SQLite's that is not there is such a case before, and damage afterwards."""
    return not result.passed and (
        result.name == "connection" or (result.name in ("integrity", "read") and result.severity == "warning")
    )


def _change(before: FileState, after: FileState) -> str:
    match before.kind, after.kind:
        case _, "unreadable":
            return "could not be read afterwards"
        case "unreadable", _:
            return "could not be read before, and can be now"
        case "missing", _:
            return "was added"
        case _, "missing":
            return "was removed"
        case "file", "file":
            quiet = ", with the same size and time" if (before.bytes, before.mtime) == (after.bytes, after.mtime) else ""
            return f"has other content{quiet}"
        case "link", "link":
            return f"points to {after.link_target}, and no longer to {before.link_target}"
        case _:
            return f"was replaced: it was {_NOUNS[before.kind]}, and is {_NOUNS[after.kind]} {after.link_target or ''}".rstrip()


def _above(path: str) -> Iterator[str]:
    """The folders above it."""
    while (path := os.path.dirname(path)) != "/":
        yield path


def _attributed(finding: GuardFinding, others: Sequence[str] | None) -> GuardFinding:
    if others is None:
        who = "Which executions ran meanwhile is not known"
    elif others:
        more = f" and {len(others) - _MOST_OTHERS_NAMED} more" if len(others) > _MOST_OTHERS_NAMED else ""
        who = f"Also ran meanwhile: {', '.join(others[:_MOST_OTHERS_NAMED])}{more}"
    else:
        who = "No other execution of this deployment ran meanwhile"
    return msgspec.structs.replace(
        finding,
        what=f"{finding.what}. {who}; a sandbox lets none write there, so look for another program of this host.",
        verdict=finding.verdict if others == [] else "suspect",
        others=list(others or ()),
    )


def _since(moment: float) -> float:
    return round(time.time() - moment, 3)
