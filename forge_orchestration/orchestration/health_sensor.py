"""The quick look as a sensor: in the code server, without a run, because the checks are cheap.

A tick reports what has changed at once, and what has not once in a while, so that a quiet deployment does not fill its own event
log. It tells a change once, in its own log and to the webhook, and asks for runs that repair and verify. All that it must remember
is in its cursor.
"""

import hashlib
import re
import time
from collections.abc import Mapping, Sequence

import dagster as dg
import msgspec
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.health import webhook
from forge_orchestration.health.changes import Change, Trouble, compare
from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.health import CheckResult
from forge_orchestration.operations.inspection import Inspection, Kind
from forge_orchestration.orchestration import full_verification, runtime_repair
from forge_orchestration.orchestration.health_verdict import FULL, QUICK, evaluation, materialization, results_of, version_of
from forge_orchestration.orchestration.lookout import Lookout
from forge_orchestration.runtimes import catalog
from forge_orchestration.settings import Settings

Job = dg.JobDefinition | UnresolvedAssetJobDefinition
_LOOK_S = 30.0  # Dagster gives a tick 60 s, and there is the webhook too
_MOST_PENDING = 500
_EVALUATED = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}


class Seen(msgspec.Struct, kw_only=True):
    """One target, as the last tick left it.

    Attributes:
        version: What it was.
        state: A digest of what passed and what did not.
        at: When that was reported, seconds since the epoch.
        repair_requested: Of a runtime: for which build; empty if for none.
    """

    version: str
    state: str
    at: float
    troubles: dict[str, Trouble] = {}
    repair_requested: str = ""


@compiled
class Memory(msgspec.Struct, kw_only=True):
    """The cursor.

    Attributes:
        pending: Changes that the webhook has not accepted yet.
        webhook: What is wrong with it; empty if it works.
    """

    seen: dict[str, Seen] = {}
    pending: list[Change] = []
    webhook: str = ""


def health_sensor(
    settings: Settings, targets: Mapping[str, Kind], keys: Mapping[str, dg.AssetKey], jobs: Sequence[Job]
) -> dg.SensorDefinition:
    """The sensor `forge_health`, which looks at `targets`; `jobs` are those that it may ask for."""
    lookout = Lookout()

    @dg.sensor(
        name="forge_health",
        minimum_interval_seconds=settings.health.quick_every_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks at this host, at runtimes, storage and databases, and reports what it finds on their assets.",
        jobs=jobs,
    )
    def forge_health(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        engine, deadline = Engine(settings), time.monotonic() + _LOOK_S
        before = _memory(context.cursor)
        now = Memory(pending=before.pending, webhook=before.webhook)
        events: list[dg.AssetMaterialization | dg.AssetCheckEvaluation | dg.AssetObservation] = []
        requests: list[dg.RunRequest] = []
        unhealthy, late = [], []
        for target, kind in targets.items():
            last, key = before.seen.get(target), keys[target]
            inspection = lookout.look(engine, target, max(0.0, deadline - time.monotonic()))
            if inspection is None:
                late.append(target)
                now.seen |= {target: last} if last else {}
                continue
            seen, changes, reported = _look_back(context, inspection, kind, last, key, settings)
            for change in changes:
                _log(context, change)
            now.pending += changes if settings.health.webhook_url else []
            now.seen[target] = seen
            events += reported
            if kind == "runtime":
                requests += _requests(context, target, seen, key, settings, just_reported=bool(reported))
            if not all(result.passed for result in inspection.results):
                unhealthy.append(target)
        _notify(context, now, settings)
        told = f"Not healthy: {', '.join(unhealthy)}." if unhealthy else "All is healthy."
        told += f" Not done yet: {', '.join(late)}." if late else ""
        return dg.SensorResult(
            asset_events=events,
            run_requests=requests,
            cursor=msgspec.json.encode(now).decode(),
            skip_reason=None if requests else f"{told} {len(events)} events reported.",
        )

    return forge_health


def _memory(cursor: str | None) -> Memory:
    """What the last tick knew; nothing, if there was none or it was another Forge's."""
    try:
        return msgspec.json.decode(cursor, type=Memory) if cursor else Memory()
    except msgspec.DecodeError:
        return Memory()


def _look_back(
    context: dg.SensorEvaluationContext, inspection: Inspection, kind: Kind, last: Seen | None, key: dg.AssetKey, settings: Settings
) -> tuple[Seen, list[Change], list[dg.AssetMaterialization | dg.AssetCheckEvaluation]]:
    """What is to be remembered of a target, what has changed, and what is to be reported."""
    version, state, now = version_of(inspection.target, kind, settings), _state(inspection.results), time.time()
    results = [*inspection.results, *(_verified(context, key, inspection.target) if kind in ("storage", "database") else ())]
    troubles, changes = compare(last.troubles if last else {}, results, now, first=last is None)
    reported: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
    if last is None or last.version != version or last.state != state or now - last.at >= settings.health.repeat_s:
        reported += [materialization(key, QUICK, inspection, version), evaluation(key, QUICK, inspection)]
    seen = Seen(version=version, state=state, at=now if reported or last is None else last.at, troubles=troubles)
    if last is not None and troubles:
        seen.repair_requested = last.repair_requested
    return seen, changes, reported


def _state(results: Sequence[CheckResult]) -> str:
    """A digest of what passed, and what was found where not; without measured numbers, which change all the time."""
    facts = [(result.name, result.passed, "" if result.passed else re.sub(r"[\d.]+", "", result.finding)) for result in results]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()


def _verified(context: dg.SensorEvaluationContext, key: dg.AssetKey, target: str) -> list[CheckResult]:
    """What was found when everything was read last. Of a runtime this is no news: it is part of each quick look."""
    found = _last_verified(context, key)
    results = results_of(found.metadata, target) if found else []
    return [msgspec.structs.replace(result, name=f"{result.name}_in_full") for result in results]


def _last_verified(context: dg.SensorEvaluationContext, key: dg.AssetKey) -> dg.AssetCheckEvaluation | None:
    records = context.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(key, FULL), limit=1, status=_EVALUATED
    )
    event = records[0].event.dagster_event if records and records[0].event else None
    return event.asset_check_evaluation_data if event else None


def _requests(
    context: dg.SensorEvaluationContext, name: str, seen: Seen, key: dg.AssetKey, settings: Settings, *, just_reported: bool
) -> list[dg.RunRequest]:
    """A repair of a runtime that is not what was built; a verification of one that was built since it was found wrong in full."""
    if (trouble := seen.troubles.get("seal")) is not None:
        damaged = _to_be_replaced(name, settings) if settings.health.repair == "auto" else ""
        if not damaged or damaged == seen.repair_requested:  # a repair that has failed is not tried again
            return []
        seen.repair_requested = damaged
        return [runtime_repair.repair_request(name, f"{damaged}, unhealthy since {trouble.since:.0f}")]
    found = _last_verified(context, key) if just_reported else None
    if found is None or found.passed:
        return []
    build = catalog.load_build(catalog.build_folder(catalog.load_definition(name, settings), settings))
    wanted = f"verify {name} {build.seal_digest} built {build.built_at:.0f}" if build else None
    return [dg.RunRequest(run_key=wanted, job_name=full_verification.JOB, asset_check_keys=[dg.AssetCheckKey(key, FULL)])]


def _to_be_replaced(name: str, settings: Settings) -> str:
    """Which build of a runtime a repair would replace; empty if that would be no help, or is not wanted."""
    try:
        folder = catalog.build_folder(catalog.load_definition(name, settings), settings)
    except ForgeError:  # nothing could be built
        return ""
    try:
        build = catalog.load_build(folder)
        wanted = build is not None and catalog.state(name, settings)[0] == "unhealthy"
    except ForgeError:
        return f"build {folder.name}, which cannot be read"
    return f"build {folder.name} of {build.built_at:.3f}" if build and wanted else ""


def _log(context: dg.SensorEvaluationContext, change: Change) -> None:
    if change.change == "better":
        context.log.info(change.sentence)
    elif change.severity == "error":
        context.log.error(change.sentence)
    else:
        context.log.warning(change.sentence)


def _notify(context: dg.SensorEvaluationContext, memory: Memory, settings: Settings) -> None:
    """Tell the webhook what it has not heard; what it does not accept waits for the next tick, and that is logged once."""
    if not settings.health.webhook_url:
        memory.pending, memory.webhook = [], ""
    if not memory.pending:
        return
    waiting = len(memory.pending)
    memory.pending, problem = webhook.deliver(memory.pending[-_MOST_PENDING:], settings.health)
    if problem and not memory.webhook:
        context.log.warning(f"The webhook was not told: {problem.rstrip('.')}. It is tried again at each tick until it works.")
    elif memory.webhook and not problem and len(memory.pending) < waiting:
        context.log.info("The webhook works again.")
    if problem or len(memory.pending) < waiting:
        memory.webhook = problem
