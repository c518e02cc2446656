"""`sandboxed_executor` beside Dagster's own: the same jobs have the same events, step by step; and what only ours promises."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from forge_orchestration.orchestration.captured_logs import CapturedLogs
from forge_orchestration.orchestration.sandboxed_executor import sandboxed_executor
from forge_orchestration.orchestration.trust import TRUSTED, TRUSTED_TAG
from forge_orchestration_tests.conftest import wait_until

MEETING_S = 20.0


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    home = tmp_path_factory.mktemp("dagster")
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.local_temp(str(home)) as made:
        patch.setenv("FORGE_HOME", str(home / "a forge home that is not there yet"))
        yield made


def run(instance: dg.DagsterInstance, job: dg.JobDefinition, **config: Any) -> dg.DagsterRun:
    """Execute a job with the executor that it has, in this process."""
    made = instance.create_run_for_job(job, run_config=config or None)
    execute_run(InMemoryJob(job), made, instance, raise_on_error=False)
    ended = instance.get_run_by_id(made.run_id)
    assert ended is not None
    return ended


def steps(instance: dg.DagsterInstance, run_id: str) -> dict[str, list[str]]:
    """The types of the events of each step, in order; logs are captured by each executor in its own way."""
    told: dict[str, list[str]] = {}
    for entry in instance.all_logs(run_id):
        event = entry.dagster_event
        if event is not None and event.step_key is not None and event.event_type is not dg.DagsterEventType.LOGS_CAPTURED:
            told.setdefault(event.step_key, []).append(event.event_type_value)
    return told


def messages(instance: dg.DagsterInstance, run_id: str) -> str:
    events = [entry.dagster_event for entry in instance.all_logs(run_id)]
    errors = [getattr(event.event_specific_data, "error", None) for event in events if event is not None]
    return "\n".join([*(str(event.message) for event in events if event is not None), *(e.to_string() for e in errors if e)])


# -- the same as Dagster's own ------------------------------------------------------------------------------------------

SEEN: list[str] = []


@dg.op(tags=TRUSTED)
def one() -> int:
    return 1


@dg.op(tags=TRUSTED)
def plus(number: int) -> int:
    return number + 1


@dg.op(tags=TRUSTED)
def total(numbers: list[int]) -> int:
    return sum(numbers)


@dg.op(tags=TRUSTED)
def fails() -> int:
    raise ValueError("this op always fails")


@dg.op(tags=TRUSTED)
def states_a_failure() -> int:
    raise dg.Failure("a stated failure", {"why": "because"})


@dg.op(tags=TRUSTED, retry_policy=dg.RetryPolicy(max_retries=2, delay=0.01))
def succeeds_the_third_time(context: dg.OpExecutionContext) -> int:
    if context.retry_number < 2:
        raise ValueError("not yet")
    return 3


@dg.op(tags=TRUSTED)
def asks_for_one_retry(context: dg.OpExecutionContext) -> int:
    raise dg.RetryRequested(max_retries=1)


@dg.op(tags=TRUSTED, out={"kept": dg.Out(is_required=False), "dropped": dg.Out(is_required=False)})
def yields_one_of_two() -> Iterator[dg.Output[int]]:
    yield dg.Output(1, "kept")


@dg.op(tags=TRUSTED, out=dg.DynamicOut())
def three() -> Iterator[dg.DynamicOutput[int]]:
    for number in range(3):
        yield dg.DynamicOutput(number, mapping_key=f"n{number}")


@dg.op(tags=TRUSTED, required_resource_keys={"broken"})
def needs_a_resource() -> None:
    SEEN.append("needs_a_resource")


@dg.op(tags=TRUSTED)
async def is_asynchronous() -> int:
    return 1


@dg.resource
def broken() -> None:
    raise ValueError("no such database")


@dg.success_hook
def when_it_succeeds(context: dg.HookContext) -> None:
    SEEN.append(f"{context.step_key} succeeded")


@dg.failure_hook
def when_it_fails(context: dg.HookContext) -> None:
    SEEN.append(f"{context.step_key} failed")


@dg.graph
def chain() -> None:
    plus(plus(one()))


@dg.graph
def fan_in() -> None:
    total([one.alias(f"one_{n}")() for n in range(4)])


@dg.graph
def failure_and_what_depends_on_it() -> None:
    plus(fails())
    plus.alias("beside")(one())


@dg.graph
def stated_failure() -> None:
    states_a_failure()


@dg.graph
def retries() -> None:
    plus(succeeds_the_third_time())
    asks_for_one_retry()


@dg.graph
def skips() -> None:
    kept, dropped = yields_one_of_two()
    plus.alias("of_kept")(kept)
    plus.alias("of_of_dropped")(plus.alias("of_dropped")(dropped))


@dg.graph
def dynamic() -> None:
    total(three().map(plus).collect())


@dg.graph
def without_its_resource() -> None:
    needs_a_resource()


@dg.graph
def asynchronous() -> None:
    for number in range(3):
        is_asynchronous.alias(f"a_{number}")()


@dg.graph
def nested() -> None:
    chain()
    one()


GRAPHS = [chain, fan_in, failure_and_what_depends_on_it, stated_failure, retries, skips, dynamic, asynchronous, nested]


@pytest.mark.parametrize("graph", [*GRAPHS, without_its_resource], ids=lambda graph: graph.name)
def test_events_are_those_of_dagsters_own_executor(instance: dg.DagsterInstance, graph: dg.GraphDefinition) -> None:
    told, seen = [], []
    for executor in (dg.in_process_executor, sandboxed_executor):
        SEEN.clear()
        resources = {"broken": broken} if graph is without_its_resource else {}
        job = graph.to_job(executor_def=executor, resource_defs=resources, hooks={when_it_succeeds, when_it_fails})
        ended = run(instance, job)
        told.append((ended.status, steps(instance, ended.run_id)))
        seen.append(sorted(SEEN))
    assert told[0] == told[1]
    assert seen[0] == seen[1]
    assert bool(seen[1]) == (graph is not without_its_resource)


def test_a_selection_of_steps_runs_alone(instance: dg.DagsterInstance) -> None:
    job = fan_in.to_job(executor_def=sandboxed_executor)
    ended = run(instance, job.get_subset(op_selection=["one_1", "one_2"]))
    assert ended.status is dg.DagsterRunStatus.SUCCESS
    assert set(steps(instance, ended.run_id)) == {"one_1", "one_2"}


# -- at one time --------------------------------------------------------------------------------------------------------

RUNNING: dict[str, int] = {}
MOST: dict[str, int] = {}
ORDER: list[str] = []
_lock = threading.Lock()


def _count(kind: str, name: str) -> None:
    with _lock:
        ORDER.append(name)
        RUNNING[kind] = RUNNING.get(kind, 0) + 1
        MOST[kind] = max(MOST.get(kind, 0), RUNNING[kind])
    time.sleep(0.05)
    with _lock:
        RUNNING[kind] -= 1


@pytest.fixture
def counted() -> None:
    for counts in (RUNNING, MOST, ORDER):
        counts.clear()


@dg.op(tags=TRUSTED)
def free(context: dg.OpExecutionContext) -> None:
    _count("any", context.op.name)


@dg.op(tags={**TRUSTED, "kind": "database"})
def one_by_one(context: dg.OpExecutionContext) -> None:
    _count("tagged", context.op.name)
    _count("any", context.op.name)


@dg.op(tags=TRUSTED, pool="license")
def pooled(context: dg.OpExecutionContext) -> None:
    _count("pooled", context.op.name)


def test_steps_wait_for_each_other_on_threads_of_one_process(instance: dg.DagsterInstance) -> None:
    meeting = threading.Barrier(4)

    @dg.op(tags=TRUSTED)
    def meets() -> None:
        meeting.wait(MEETING_S)

    @dg.job(executor_def=sandboxed_executor)
    def four() -> None:
        for number in range(4):
            meets.alias(f"m{number}")()

    ended = run(instance, four, execution={"config": {"max_concurrent": 4}})
    assert ended.status is dg.DagsterRunStatus.SUCCESS


@pytest.mark.usefixtures("counted")
def test_limits_of_tags_and_of_all_hold(instance: dg.DagsterInstance) -> None:
    @dg.job(executor_def=sandboxed_executor)
    def many() -> None:
        for number in range(6):
            free.alias(f"f{number}")()
            one_by_one.alias(f"o{number}")()

    limits = [{"key": "kind", "value": "database", "limit": 1}]
    ended = run(instance, many, execution={"config": {"max_concurrent": 3, "tag_concurrency_limits": limits}})
    assert ended.status is dg.DagsterRunStatus.SUCCESS
    assert MOST["tagged"] == 1
    assert MOST["any"] in (2, 3)


@pytest.mark.usefixtures("counted")
def test_a_pool_of_the_instance_holds(instance: dg.DagsterInstance) -> None:
    instance.event_log_storage.set_concurrency_slots("license", 1)

    @dg.job(executor_def=sandboxed_executor)
    def licensed() -> None:
        for number in range(2):
            pooled.alias(f"p{number}")()

    ended = run(instance, licensed, execution={"config": {"max_concurrent": 4}})
    assert ended.status is dg.DagsterRunStatus.SUCCESS
    assert MOST == {"pooled": 1}
    assert "STEP_CONCURRENCY_BLOCKED" in str(steps(instance, ended.run_id)) or "blocked" in messages(instance, ended.run_id)


@pytest.mark.usefixtures("counted")
def test_the_highest_priority_is_first(instance: dg.DagsterInstance) -> None:
    @dg.job(executor_def=sandboxed_executor)
    def prioritised() -> None:
        for number in (3, 1, 4, 2):
            free.alias(f"f{number}").tag({"dagster/priority": str(number)})()

    ended = run(instance, prioritised, execution={"config": {"max_concurrent": 1}})
    assert ended.status is dg.DagsterRunStatus.SUCCESS
    assert ORDER == ["f4", "f3", "f2", "f1"]


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_many_steps_on_sixteen_threads_are_told_whole(instance: dg.DagsterInstance, count: int) -> None:
    @dg.op(tags=TRUSTED, retry_policy=dg.RetryPolicy(max_retries=1))
    def now_and_then(context: dg.OpExecutionContext) -> int:
        if context.op.name.endswith("0") and not context.retry_number:
            raise ValueError("not yet")
        return 1

    @dg.job(executor_def=sandboxed_executor)
    def wide() -> None:
        total([now_and_then.alias(f"n{number}")() for number in range(count)])

    ended = run(instance, wide, execution={"config": {"max_concurrent": 16}})
    assert ended.status is dg.DagsterRunStatus.SUCCESS, messages(instance, ended.run_id)[-2000:]
    told = steps(instance, ended.run_id)
    assert len(told) == count + 1
    first = ["STEP_START", "STEP_UP_FOR_RETRY", "STEP_RESTARTED"]
    for name, events in told.items():
        started = first if name.endswith("0") else ["STEP_START"]
        kept = [event for event in events if event in (*first, "STEP_OUTPUT", "STEP_SUCCESS", "STEP_FAILURE")]
        assert kept == [*started, "STEP_OUTPUT", "STEP_SUCCESS"], (name, events)


def test_no_step_at_one_time_is_refused(instance: dg.DagsterInstance) -> None:
    job = chain.to_job(executor_def=sandboxed_executor)
    ended = run(instance, job, execution={"config": {"max_concurrent": 0}})
    assert ended.status is dg.DagsterRunStatus.FAILURE
    assert "max_concurrent is 0, and must be at least 1" in messages(instance, ended.run_id)


# -- what may run here --------------------------------------------------------------------------------------------------


@dg.asset
def reads_dagsters_home() -> None:
    SEEN.append("the body of an ordinary asset ran")


@dg.graph
def around_an_ordinary_op() -> None:
    @dg.op
    def ordinary() -> None:
        SEEN.append("the body of an ordinary op ran")

    one()
    ordinary()


def _asset_job() -> dg.JobDefinition:
    defs = dg.Definitions([reads_dagsters_home], jobs=[dg.define_asset_job("j")], executor=sandboxed_executor)
    return defs.resolve_job_def("j")


def _nested_job() -> dg.JobDefinition:
    @dg.job(executor_def=sandboxed_executor)
    def outer() -> None:
        around_an_ordinary_op()

    return outer


@pytest.mark.parametrize(
    ("job", "name"), [(_asset_job(), "reads_dagsters_home"), (_nested_job(), "ordinary")], ids=["asset", "op in a graph"]
)
def test_an_ordinary_body_is_refused_before_the_run_starts(instance: dg.DagsterInstance, job: dg.JobDefinition, name: str) -> None:
    SEEN.clear()
    ended = run(instance, job)
    assert ended.status is dg.DagsterRunStatus.FAILURE
    assert SEEN == []
    assert not any(event.startswith("STEP_") for events in steps(instance, ended.run_id).values() for event in events)
    said = messages(instance, ended.run_id)
    assert f"The body of '{name}' would run outside a sandbox" in said
    assert "@forge_asset" in said
    assert dg.DagsterEventType.RUN_START not in [entry.dagster_event_type for entry in instance.all_logs(ended.run_id)]


def test_a_tag_of_the_run_vouches_for_nothing(instance: dg.DagsterInstance) -> None:
    SEEN.clear()
    made = instance.create_run_for_job(_asset_job(), tags=TRUSTED)
    execute_run(InMemoryJob(_asset_job()), made, instance, raise_on_error=False)
    assert SEEN == []
    assert "would run outside a sandbox" in messages(instance, made.run_id)


def test_a_job_vouched_for_where_it_is_used_runs(instance: dg.DagsterInstance) -> None:
    @dg.op
    def ordinary() -> None:
        SEEN.append("ordinary")

    @dg.job(executor_def=sandboxed_executor)
    def vouched_for() -> None:
        ordinary.tag({TRUSTED_TAG: "true"})()

    SEEN.clear()
    assert run(instance, vouched_for).status is dg.DagsterRunStatus.SUCCESS
    assert SEEN == ["ordinary"]


# -- the end ------------------------------------------------------------------------------------------------------------


def test_the_thread_of_a_step_is_gone_when_its_run_has_ended(instance: dg.DagsterInstance) -> None:
    before = set(threading.enumerate())
    run(instance, fan_in.to_job(executor_def=sandboxed_executor))
    wait_until("the end of the steps' threads", lambda: not {t for t in set(threading.enumerate()) - before if "step" in t.name})


def test_a_log_that_cannot_be_kept_does_not_leave_the_run_waiting(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: CapturedLogs) -> None:
        raise RuntimeError("the bucket of the logs is gone")

    monkeypatch.setattr(CapturedLogs, "complete", fails)
    ended = run(instance, fan_in.to_job(executor_def=sandboxed_executor))
    assert ended.status is dg.DagsterRunStatus.SUCCESS
    assert any("the bucket of the logs is gone" in entry.user_message for entry in instance.all_logs(ended.run_id))


def test_a_thread_that_dies_without_a_word_is_missed(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_orchestration.orchestration.sandboxed_executor._Steps._work", lambda *_: None)
    ended = run(instance, chain.to_job(executor_def=sandboxed_executor))
    assert ended.status is dg.DagsterRunStatus.FAILURE
    assert any("finished without success or failure" in entry.user_message for entry in instance.all_logs(ended.run_id))
