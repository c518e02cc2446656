"""All checks, for `forge doctor` and the sensor. None of them changes anything, but for a test sandbox and the time of the last look."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Literal

from forge_orchestration.errors import ForgeError, HostError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.executors.admission import standing
from forge_orchestration.health.guard_outlook import guard_outlook
from forge_orchestration.health.host import room_and_time_checks
from forge_orchestration.model.capacity import COUNTED
from forge_orchestration.model.health import CheckResult
from forge_orchestration.model.reasons import Status
from forge_orchestration.model.sections import GuardSettings
from forge_orchestration.runtimes import catalog
from forge_orchestration.sandbox import precedence, probe
from forge_orchestration.sandbox.sandboxed import PROTECTIONS
from forge_orchestration.settings import Settings, make_home
from forge_orchestration.units import format_bytes

_READ_BACK = {
    "memory_limit": "memory_bytes", "cpu_limit": "cpus", "pids_limit": "pids", "open_files_limit": "open_files",
    "scratch_limit": "scratch_bytes",
}  # fmt: skip


def run_checks(settings: Settings, targets: list[str] | None = None) -> list[CheckResult]:
    """The checks of `targets` (`host`, and names of runtimes; default: all), the host's first."""
    results: list[CheckResult] = []
    if targets is None or "host" in targets:
        results += host_checks(settings)
    for name in catalog.runtime_names(settings):
        if targets is None or name in targets:
            results.append(runtime_check(name, settings))
    return results


def host_checks(settings: Settings) -> list[CheckResult]:
    """What this host can do, each line tried for real, and room on its disk."""
    results = [_attempt(name, check) for name, check in probe.attempts(settings)]
    failed = next((result.name for result in results if not result.passed), "")
    results.append(_attempt("precedence", lambda: precedence.outlook(settings), "warning"))
    told = {result.name for result in results}
    # an attempt says more of what is there, or of what to do, than the protection's `on` or `not tried`
    results += [line for line in _protections(settings, failed) if line.name not in told or line.finding.startswith("off")]
    results.append(_attempt("capacity", lambda: _capacity(settings)))
    results.append(_attempt("stuck", lambda: _stuck(settings)))
    if settings.guard != GuardSettings():
        results.append(_attempt("guard", lambda: guard_outlook(settings), "warning"))
    return results + room_and_time_checks(settings)


def runtime_check(name: str, settings: Settings) -> CheckResult:
    """Whether the runtime called `name` is built, and is what was built (the quick comparison)."""

    def result(passed: bool, finding: str, remedy: str = "", *, warning: bool = False, corruption: bool = False) -> CheckResult:
        return CheckResult(
            name="seal", target=name, passed=passed, severity="warning" if warning else "error", finding=finding, remedy=remedy,
            corruption=corruption,
        )  # fmt: skip

    try:
        folder = catalog.build_folder(catalog.load_definition(name, settings), settings)
        build = catalog.load_build(folder)
        if build is None:
            return result(False, "not built", f"forge runtimes build {name}", warning=True)
        state, findings = catalog.state(name, settings)
    except ForgeError as error:
        return result(False, error.message, error.hint)
    if findings:
        more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
        if state == "quarantined":
            return result(False, f"quarantined: {findings[0]}", f"forge runtimes quarantine --release {name}")
        return result(False, f"{findings[0]}{more}", f"forge runtimes repair {name}", corruption=True)
    return result(True, f"{build.files} files as sealed (content {build.content_digest[:12]})")


def _attempt(name: str, check: Callable[[], str], severity: Literal["error", "warning"] = "error") -> CheckResult:
    try:
        return CheckResult(name=name, target="host", passed=True, finding=check())
    except ForgeError as error:
        return CheckResult(name=name, target="host", passed=False, severity=severity, finding=error.message, remedy=error.hint)
    except OSError as error:
        return CheckResult(
            name=name, target="host", passed=False, severity=severity, finding=str(error), remedy="See docs/operating.md"
        )


def _protections(settings: Settings, failed: str) -> list[CheckResult]:
    """A line for each protection, as an execution of `true` has found it just now; `failed` names an attempt that did."""
    from forge_orchestration.executors.trial import try_sandbox

    if failed:
        return [
            CheckResult(name=name, target="host", passed=False, severity="warning", finding=f"not tried, because '{failed}' failed")
            for name in PROTECTIONS
        ]
    try:
        record = try_sandbox(settings)
    except ForgeError as error:
        return [CheckResult(name="trial", target="host", passed=False, finding=error.message, remedy=error.hint)]
    except OSError as error:
        return [CheckResult(name="trial", target="host", passed=False, finding=str(error), remedy=f"Is {settings.home} writable?")]
    assert record.isolation is not None
    lines = []
    for name, state in record.isolation.protections.items():
        limit = record.enforced.get(_READ_BACK.get(name, ""))
        finding = state
        if limit is not None:
            amount = format_bytes(int(limit.value)) if _READ_BACK[name].endswith("_bytes") else f"{limit.value:g}"
            finding = f"{state}; {amount} ({limit.source.replace(record.execution_id, 'ID')})"
        lines.append(
            CheckResult(
                name=name, target="host", passed=state.startswith("on"), severity="warning", finding=finding,
                remedy="" if state.startswith("on") else "See docs/security.md",
            )
        )  # fmt: skip
    return lines


def _capacity(settings: Settings) -> str:
    """What all executions may use together, what those that run have claimed, and who waits."""
    capacity, book = standing(settings)
    amounts = []
    for field, (show, noun) in COUNTED.items():
        if (there := getattr(capacity, field)) is not None:
            amounts.append(f"{show(sum(getattr(claim.limits, field) for claim in book.running))} of {show(there)} {noun}")
    most = f" of {capacity.executions}" if capacity.executions is not None else ""
    finding = f"{len(book.running)}{most} running, with {', '.join(amounts)}"
    if waiting := book.waiting:
        finding += f"; {len(waiting)} waiting, first {waiting[0].execution_id}: {book.why(waiting[0])}"
    return finding


def _stuck(settings: Settings) -> str:
    """Whether executions wait for processes that were killed and hang in the kernel.

    Raises:
        HostError: Some do.
    """
    make_home(settings)
    found = []
    for execution_id in Store(settings.store_path).unfinished_controllers():
        with contextlib.suppress(ForgeError):  # one that is being made has no record yet
            record = ExecutionFolder(settings.executions_dir, execution_id).read_record()
            if record.status is Status.COLLECTING and record.message:
                found.append(f"{execution_id}: {record.message}")
    if found:
        raise HostError(" ".join(found), "Look at what their files lie on; when nothing else helps: restart the host.")
    return "no execution waits for a process that hangs in the kernel"
