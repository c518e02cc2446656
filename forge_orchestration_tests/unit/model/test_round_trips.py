"""Everything that is written to a file or a socket comes back the same; a new structure without an example here is a failure."""

from __future__ import annotations

import importlib
import pkgutil
from datetime import date
from pathlib import Path

import msgspec
import pytest

import forge_orchestration
from forge_orchestration.executions.downloads import Download
from forge_orchestration.executions.inputs import ResolvedInput
from forge_orchestration.executions.statistics import FailedExecution
from forge_orchestration.executors.admission import Book, Claim
from forge_orchestration.executors.registry import ExecutorFacts
from forge_orchestration.executors.slurm import Job
from forge_orchestration.executors.slurm_cluster import Asked, Submission
from forge_orchestration.health.changes import Change, Trouble
from forge_orchestration.health.host import ClockReading
from forge_orchestration.health.last import LastResult, LastResults
from forge_orchestration.metrics.present import RuntimeNow
from forge_orchestration.metrics.status import (
    Active,
    Actives,
    Check,
    Claimed,
    Day,
    Health,
    IsolationNow,
    QuestStatus,
    RuntimeHealth,
)
from forge_orchestration.model.capacity import Capacity
from forge_orchestration.model.guard import FileState, GuardFacts, GuardFinding
from forge_orchestration.model.health import CheckResult
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.messages import Message
from forge_orchestration.model.publication import Column, Publication, PublishedFacts
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import (
    CacheFacts,
    CheckFacts,
    CheckpointFacts,
    Cleanup,
    CodeFacts,
    Enforced,
    ExecutionRecord,
    InputFacts,
    Isolation,
    LogFacts,
    Measured,
    OutputFacts,
    RejectedOutput,
    RuntimeFacts,
    Usage,
    record_from_json,
)  # fmt: skip
from forge_orchestration.model.sections import (  # fmt: skip
    CgroupSettings,
    DatabaseSettings,
    DownloadSettings,
    ExecutorRule,
    GuardSettings,
    HealthSettings,
    HostCheckSettings,
    IdentitySettings,
    IsolationSettings,
    MessageSettings,
    MetricsSettings,
    NeighbourSettings,
    OutputSettings,
    PublicationSettings,
    ReuseSettings,
    RuntimeRule,
    SlurmSettings,
    SupervisionSettings,
)
from forge_orchestration.model.spec import AnalysisDefinition, AnalysisSpec, InputSource, Param, Partitions, RetryWithMore, Stage
from forge_orchestration.operations.compare import Difference
from forge_orchestration.operations.inspection import Inspection
from forge_orchestration.operations.reconcile import Reconciled
from forge_orchestration.operations.replay import Replayed
from forge_orchestration.operations.retention import Removal, Rules
from forge_orchestration.operations.verification import Verification
from forge_orchestration.operations.why import Explanation
from forge_orchestration.operations.workers import Worker, WorkerEnd
from forge_orchestration.resume.changes import ChangedPart
from forge_orchestration.resume.fingerprint import Fingerprint
from forge_orchestration.resume.system_view import SystemView, _Look
from forge_orchestration.runtimes.catalog import Runtime, RuntimeDefinition
from forge_orchestration.runtimes.index import Part
from forge_orchestration.runtimes.seal import Entry, Verdict
from forge_orchestration.sandbox.cgroups.base import Counters, Refusals
from forge_orchestration.sandbox.cgroups.find import CgroupSite, Greeting
from forge_orchestration.sandbox.entry import Ended, Failed, Keeper, Launch
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.plan import Bind, CheckpointPlan, ContainerPlan, LaunchPlan
from forge_orchestration.sandbox.process_identity import ProcessIdentity
from forge_orchestration.sandbox.scratch import Size
from forge_orchestration.sandbox.standby import Hello

TEXT = "-ö'\"\\ \n\t\x1b[31m\u2028💥"
LIMITS = Limits(
    memory_bytes=1, cpus=0.5, pids=2, wall_time_s=0.25, grace_s=0.0, scratch_bytes=3, log_bytes=2**62, files=4, open_files=5
)
MEASURED = Measured(value=1.5, source=TEXT)
SITE = CgroupSite(version=1, mounts={"memory": "/a b", "cpu": TEXT}, parent="p/q")
PROCESS = ProcessIdentity(pid=1, start_time=2**62, boot_id="b")
BIND = Bind(source=TEXT, target="/t", device=2**64 - 1, inode=2**64 - 1)
RUNTIME = RuntimeFacts(build="b",
    name=TEXT, kind="venv", content_digest="a", seal_digest="b", verified_at=1.25, chosen_by="caller", python="3.11.2"
)  # fmt: skip
USAGE = Usage(
    wall_s=MEASURED, cpu_user_s=MEASURED, cpu_system_s=MEASURED, peak_memory_bytes=MEASURED, peak_pids=MEASURED,
    io_read_bytes=MEASURED, io_write_bytes=MEASURED, peak_scratch_bytes=MEASURED,
)  # fmt: skip
INPUT = InputFacts(name="n", source=TEXT, sha256="s", bytes=2**53 + 1, taken_at=1.5)
OUTPUT = OutputFacts(name=TEXT, path=TEXT, sha256="s", bytes=0)
REJECTED = RejectedOutput(path=TEXT, why=TEXT)
LOG = LogFacts(path=TEXT, bytes=1, truncated_bytes=2**60)
ISOLATION = Isolation(mode="own_uid", uid=2**31, protections={TEXT: "off: " + TEXT})
CLEANUP = Cleanup(scratch_bytes_freed=1, processes_killed=2, cgroup_removed=True, mounts_removed=3, finished_at=0.5)
FILE_STATE = FileState(kind="link", bytes=2**53 + 1, mtime=0.25, sha256="s", link_target=TEXT)
GUARD_FINDING = GuardFinding(
    target=TEXT, what=TEXT, verdict="suspect", before=FILE_STATE, after=FileState(kind="missing"), others=["i"]
)
GUARD = GuardFacts(
    databases=[TEXT], tier="full", paths=[TEXT], files=1, bytes=2**53 + 1, before_at=0.25, before_s=0.5, after_at=1.5, after_s=2.5,
    why_not_after=TEXT, findings=[GUARD_FINDING],
)  # fmt: skip
PUBLISHED = PublishedFacts(
    name="p", output="o", target="d.t", execution_id="e", rows=2, sha256="s", at=1.5, error=TEXT, transient=True
)
PUBLICATION = Publication(
    output="o", table="d.t", columns={"c": Column(type="float", null=True, min=0, max=1.5, choices=(1, 2.5))}, unique=("c",)
)
CHECK_FACTS = CheckFacts(name="c", passed=False, severity="warning", message=TEXT, values={"n": 1.5})
CHECKPOINT = CheckpointFacts(resumed_from="x", resumed_bytes=2**40, kept=True, why=TEXT)
CACHE = CacheFacts(policy="refresh", hit=True, source_execution_id="x", why=TEXT, reusable=True)
RECORD = ExecutionRecord(
    schema_version=1, execution_id="20260102T030405678-9f86d081", analysis=TEXT, attempt=3, previous_execution_id="p", executor="e",
    native_id="1:2:3", host=TEXT, dagster_run_id="r", dagster_step_key="k", partition="p", status=Status.FAILED, end_reason=EndReason.MEMORY,
    message=TEXT, exit_code=3, signal=9, runtime=RUNTIME, command=("sh", "-c", TEXT, ""),
    parameters={"a": 1, "b": 1.5, "c": True, "d": TEXT}, seed=2**62, threads=2, chosen_by={"runtime": "caller"}, inputs=[INPUT],
    code=CodeFacts(sha256="s", git_commit="c", git_dirty=False), limits=LIMITS, enforced={"cpus": Enforced(value=0.5, source=TEXT)},
    isolation=ISOLATION, violations={"unshare": 3}, suspect=True, guard=GUARD, usage=USAGE, outputs=[OUTPUT], rejected_outputs=[REJECTED],
    metadata={TEXT: TEXT, "n": 1.5, "b": False}, checks=[CHECK_FACTS], published=[PUBLISHED], logs={"stdout": LOG}, cleanup=CLEANUP, fingerprint="f",
    fingerprint_parts={"param/a": TEXT}, cache=CACHE, checkpoint=CHECKPOINT, queued_at=0.25, started_at=1.25, ended_at=2.5, folder=TEXT,
)  # fmt: skip
PLAN = LaunchPlan(
    analysis="a",
    execution_id="i", folder=TEXT, scratch_dir=TEXT, bubblewrap="/usr/bin/bwrap", command=("sh", TEXT),
    environment={"A": TEXT}, limits=LIMITS, system_binds=("/usr",), system_links={"/bin": "usr/bin"}, binds=(BIND,),
    outputs={"o": "*.csv"}, checks=("c",), parameters_json='{"a": 1}', cgroup=SITE, identity=IdentitySettings(first_uid=100_000, count=6),
    messages=MessageSettings(max_line_bytes=300, max_count=8), output_caps=OutputSettings(max_files=9, max_depth=10),
    supervision=SupervisionSettings(on_controller_loss="continue", poll_s=0.5, fork_bomb_grace_s=1.5, suspect_after=7),
    neighbours=NeighbourSettings(cpu_weight=2, cpu_slice_ms=0.5, oom_score_adj=3, read_bytes_per_s=2**40, writes_per_s=4),
    isolation=IsolationSettings(may_be_off=()), checkpoint=CheckpointPlan(folder=TEXT, start="1-x"),
    container=ContainerPlan(engine=TEXT, image="sha256:x"),
)  # fmt: skip
PARAM = Param(type="float", default=1.5, min=-1.0, max=2.0, choices=[1.5, 2.0], description=TEXT)
RETRY = RetryWithMore(attempts=3, factor=1.5)
STAGE = Stage(
    command=("c", TEXT), description=TEXT, runtime="r", inputs={"i": InputSource(path="stage://a/b")}, outputs={"o": "*"},
    checks={"c": "expects"}, params=("p",), files=("f",), limits={"pids": 5}, env={"A": TEXT}, threads=2,
)  # fmt: skip
PARTITIONS = Partitions(keys=("a", "b"), every="day", start=date(2026, 1, 1), dynamic="d", per_run=3)
SPEC = AnalysisSpec(
    name="n", command=("c", TEXT), folder=TEXT, runtime="r", executor="e", inputs={"i": TEXT}, outputs={"o": "*"},
    params={"a": 1, "b": 1.5, "c": False, "d": TEXT}, limits=LIMITS, env={"E": TEXT}, threads=2, seed=3, priority=-4,
    chosen_by={"runtime": "x"}, group=TEXT, tags=("t",), files=(TEXT,), function="m:f", retry_with_more=RETRY,
    dagster_run_id="r", dagster_step_key="k", partition="p", checks=("c",), attempt=2, previous_execution_id="p", cache="only", checkpoints=False, publish={"p": PUBLICATION},
)  # fmt: skip
CAPACITY = Capacity(memory_bytes=2**40, pids=9, scratch_bytes=2**41, cpus=1.5, executions=3)
CLAIM = Claim(
    execution_id="x", priority=-4, limits=LIMITS, capacity=CAPACITY, pid=1, start_time=2**62, folder=TEXT, group="/g", ticket=7,
    granted=True,
)  # fmt: skip
CHECK_RESULT = CheckResult(name="n", target="host", passed=False, severity="warning", finding=TEXT, remedy=TEXT, corruption=True)
LAST = LastResult(result=CHECK_RESULT, tier="full", checked_at=0.5, since=0.25, about="database")
CHECK = Check(
    target=TEXT, name="n", passed=False, severity="error", corruption=True, finding=TEXT, remedy=TEXT, tier="quick", checked_at=0.5,
    since=0.25,
)  # fmt: skip
HEALTH = Health(overall="unhealthy", errors=1, warnings=2, oldest_at=0.5, checks=[CHECK])
ACTIVE = Active(execution_id="x", analysis=TEXT, runtime="r", status=Status.QUEUED, message=TEXT, queued_at=0.5, started_at=None)
FAILED = FailedExecution(
    execution_id="x", analysis=TEXT, runtime="r", status="failed", end_reason="memory", message=TEXT, ended_at=None
)
DAY = Day(ended=3, by_status={"failed": 3}, by_end_reason={"memory": 3}, suspect=1, success_rate=None)
RUNTIME_HEALTH = RuntimeHealth(name="r", state="quarantined", findings=[TEXT], checked_at=None)
QUEST = QuestStatus(
    generated_at=0.5, forge_version="1", host=TEXT, health=HEALTH, runtimes=[RUNTIME_HEALTH], running=Actives(count=0, first=[]),
    queued=Actives(count=2, first=[ACTIVE]), capacity={"pids": Claimed(claimed=1.5, capacity=None)}, last_failures=[FAILED],
    last_24h=DAY, corruption=[CHECK], isolation=IsolationNow(degraded=True, protections_off=["precedence"]),
)  # fmt: skip
EXAMPLES: list[msgspec.Struct] = [
    LAST, LastResults(results=[LAST]), CHECK, HEALTH, ACTIVE, FAILED, DAY, RUNTIME_HEALTH, QUEST, QUEST.queued, QUEST.isolation,
    QUEST.capacity["pids"], RuntimeNow(name="r", state="building", findings=[TEXT]), MetricsSettings(max_label_values=3),
    CAPACITY, CLAIM, Book(boot_id="b", next_ticket=8, checked_at=0.5, claims=[CLAIM]),
    LIMITS, MEASURED, SITE, BIND, RUNTIME, USAGE, INPUT, OUTPUT, REJECTED, LOG, ISOLATION, CLEANUP, RECORD, PLAN, PARAM, SPEC,
    ClockReading(boot_id="b", wall_s=2**31 + 0.5, since_boot_s=1.5), FILE_STATE, GUARD_FINDING, GUARD, HostCheckSettings(load_per_cpu=0.5, free_disk_bytes=2**40),
    GuardSettings(groups=(TEXT,), databases=("d",), tier="full", on_unreadable="note"),
    CodeFacts(sha256="s", git_commit=None, git_dirty=None), Enforced(value=-0.5, source=TEXT),
    CACHE, ExecutionRecord(execution_id="x", analysis="a"),
    Message(type="metadata", level="error", message=TEXT, fraction=0.5, values={"a": 1, "b": 1.5, "c": True, "d": TEXT}, name="n", passed=False),
    CheckResult(name="n", target="host", passed=False, severity="warning", finding=TEXT, remedy=TEXT, corruption=True),
    InputSource(path="package://a/b", description=TEXT),
    AnalysisDefinition(
        name="n", folder="/f", command=("c",), description=TEXT, group="g", runtime="r", executor="e",
        inputs={"i": InputSource(path=TEXT)}, outputs={"o": "*"}, params={"p": PARAM}, limits={"memory": "1GiB"}, env={"A": TEXT},
        threads=2, seed=3, priority=-4, tags=("t", TEXT), runtime_chosen_by="rule: tag t", executor_chosen_by="default", files=(TEXT,), function="m:f",
        retry_with_more=RETRY,
        partitions=PARTITIONS,
        schedule="0 3 * * *",
        checks={"c": "expects"},
        cache="off",
        deterministic=True,
        stages={"s": STAGE},
        publish={"p": PUBLICATION},
    ),
    RETRY,
    STAGE,
    Rules(older_than_s=1.5, max_bytes=2**40, keep_last=0),
    Removal(what="x", analysis=TEXT, ended_at=0.5, bytes=2**40, why="age"),
    PARTITIONS,
    CHECK_FACTS,
    ReuseSettings(policy="refresh"),
    DownloadSettings(hosts=("*.org",), max_bytes=2**40, silence_s=0.5, max_s=1.5),
    Download(url="https://a/b", sha256="s"),
    InputSource(path="", url="https://a/b", sha256="s"),
    InputSource(database="d", query=TEXT),
    PUBLICATION,
    PUBLICATION.columns["c"],
    DatabaseSettings(url="sqlite:////x", tables=("a*",), snapshots=True, max_bytes=2**40),
    PublicationSettings(max_bytes=2**40, max_rows=5, retry_s=0.5),
    PublishedFacts(name="p", output="o", target="f/x", execution_id="e"),
    Difference(path=TEXT, what=TEXT),
    Replayed(
        original="x", execution_id="y", end_reason="completed", verdict="different", outputs=2,
        differences=[Difference(path=TEXT, what=TEXT)], changed=[ChangedPart(part="seed", before="0", now="1")],
    ),
    CHECKPOINT,
    PLAN.checkpoint,
    PLAN.container,
    ExecutorFacts(
        name="n", available=False, why=TEXT, hint=TEXT, where=TEXT, limits=["memory"], enforced_by=TEXT, runtime_kinds=["venv"],
        network_modes=["none"], reattach=True, cannot=[TEXT],
    ),
    Fingerprint(parts={"param/a": TEXT}),
    SystemView("x86_64", {"a:amd64": "1"}, {"/usr/local/bin/b": "s"}, {"/usr/local/lib/R": "s"}, {"/etc/alternatives/c": "/d"}),
    _Look(0.5, TEXT, "d"),
    ChangedPart(part="seed", before=None, now="1"),
    Explanation(would_run=True, sentence=TEXT, fingerprint="f", compared_with="x", changes=[ChangedPart(part="seed", before="0", now=None)]),
    ResolvedInput(name="n", path=TEXT, device=2**64 - 1, inode=2**64 - 1, facts=INPUT, stamp="1-2", owner=(1, 2)),
    RuntimeRule(runtime="r", group="g", tag=TEXT),
    ExecutorRule(executor="e", group="g", tag=TEXT, memory_over="16GiB"),
    Job(job="17", submitted_at=1.5), Asked(name="n", task=3), Submission(resources=("a",), entry_point=("b",), executions="/e", places=("c",)),
    SlurmSettings(
        partition="p", account="a", qos="q", python=TEXT, poll_s=1.5, record_s=2.5, commands_per_minute=3, array_size=4, spare_bytes=4, spare_s=5.5
    ),
    Refusals(oom_kills=1, memory_limit_hit=True, pids_refused=2, socket_bytes_over=3),
    Counters(
        oom_kills=1, memory_limit_hit=True, pids_refused=2, socket_bytes_over=3, cpu_user_s=MEASURED, cpu_system_s=MEASURED, peak_memory_bytes=MEASURED,
        peak_pids=MEASURED, io_read_bytes=MEASURED, io_write_bytes=MEASURED,
    ),
    Hello(parent="x/y", identity=IdentitySettings(first_uid=100_000, count=6), scratch_dir=TEXT, size=Size(bytes=1, files=2), contained=True), Greeting(site=SITE), Greeting(error=TEXT, hint=TEXT), Identity(mode="own_uid", uid=2**31, gid=2**31),
    PROCESS, Reconciled(alive=1, closed=["a"], indexed=["b"], removed=[TEXT]),
    RuntimeDefinition(
        name="n", folder="/f", kind="venv", lock="l", prefix=TEXT, description=TEXT, python=">=3", self_test=("python", "t.py"),
        limits={"pids": 5},
    ),
    Runtime(
        name="n", kind="venv", build="b", content_digest="c", seal_digest="s", python="3.11.2", base_prefix="/usr", prefix=TEXT, mount="/m", site_packages="s", activation={"A": TEXT},
        packages={"a": "1"}, built_at=0.5, build_s=1.5, bytes=2**40, files=3,
    ),
    Entry("a/ö\n", "l", 1, 0o644, 2**62, "../t", "digest", 7), Entry("p", "d", 0, 0o755, 0), Verdict(at=0.5, findings=[TEXT]), Part([b".", b"./\xff"], b"./\xff//d 755 7\0"),
    Verification(runtime="r", state="unhealthy", tier="full", findings=[TEXT], files=3, took_s=0.5),
    Inspection(target="r", results=[CheckResult(name="n", target="r", passed=False)], findings=2, took_s=0.5, files=3),
    Trouble(target="r", check=TEXT, severity="warning", since=0.5, told=True),
    Change(target="r", check="c", change="better", severity="warning", finding=TEXT, remedy=TEXT, since=0.5, at=1.5),
    HealthSettings(quick_every_s=60, full_at="", time_zone="Europe/Berlin", repeat_s=5.5, webhook_url="https://a", webhook_timeout_s=2.5, repair="auto"),
    IdentitySettings(first_uid=100_000, count=6), NeighbourSettings(cpu_weight=2), CgroupSettings(parent="x/y"), MessageSettings(max_line_bytes=300, max_count=2),
    Size(bytes=2**62, files=3), Ended(status=9, blocks_read=1, blocks_written=2), Failed(failed=TEXT), Keeper(keeper_pid=3),
    Launch(command=("a", TEXT), environment={"A": TEXT}, identity=Identity(mode="own_uid", uid=5, gid=6), join_files=(TEXT,), open_files=7,
           file_size_bytes=8),
    Worker(process=PROCESS, keeper=PROCESS), WorkerEnd(exit_code=-9, oom_kills=1, peak_memory_bytes=2.0**40, killed_after_s=0.5),
    IsolationSettings(may_be_off=()), OutputSettings(max_files=3, max_depth=4), SupervisionSettings(on_controller_loss="continue", poll_s=0.5, fork_bomb_grace_s=1.5, suspect_after=7),
]  # fmt: skip
# they stay in the process that made them
NOT_SERIALISED = {
    "Settings", "Observed", "Collected", "Found", "_Kept", "ResolvedRuntime", "PreparedExecution", "ExecutionHandle",
    "ExecutionState", "ExecutorCapabilities", "Standing", "Range", "Package", "_File", "Installed", "Tree", "JobState",
}  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: type(one).__name__)
def test_json_and_back(example: msgspec.Struct) -> None:
    assert msgspec.json.decode(msgspec.json.encode(example), type=type(example)) == example


def test_every_structure_has_an_example_or_a_reason() -> None:
    for module in pkgutil.walk_packages([str(Path(forge_orchestration.__file__).parent)], "forge_orchestration."):
        if not any(part in module.name for part in (".orchestration.", ".definitions", ".analyses.")):
            importlib.import_module(module.name)
    waiting, found = [msgspec.Struct], set()
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("forge_orchestration.") and ".orchestration." not in kind.__module__:
                found.add(kind.__name__)
    assert found - NOT_SERIALISED == {type(example).__name__ for example in EXAMPLES}


def test_examples_leave_no_field_at_its_default() -> None:
    """Or the round trip of that field would prove nothing."""
    for example in (RECORD, PLAN, SPEC, LIMITS, RUNTIME, USAGE, CLEANUP, CAPACITY, CLAIM, FILE_STATE, GUARD_FINDING, GUARD):
        for field in msgspec.structs.fields(example):
            if field.name != "schema_version" and field.default is not msgspec.NODEFAULT:
                assert getattr(example, field.name) != field.default, field.name


class TestRecord:
    def test_as_record_json_holds_it(self) -> None:
        assert record_from_json(RECORD.to_json()) == RECORD
        assert record_from_json(RECORD.to_json().encode()) == RECORD

    def test_fields_that_a_newer_forge_added_are_left_out(self) -> None:
        assert record_from_json(RECORD.to_json().replace("{", '{"color_of_the_cat": [1],', 1)) == RECORD

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "null",
            "{}",
            '{"execution_id": 5, "analysis": "a"}',
            '{"execution_id": "x", "analysis": "a", "status": "odd"}',
        ],
    )
    def test_what_is_no_record_is_refused(self, text: str) -> None:
        with pytest.raises(msgspec.DecodeError):
            record_from_json(text)

    @pytest.mark.parametrize("status", Status)
    def test_only_a_succeeded_one_succeeded(self, status: Status) -> None:
        assert ExecutionRecord(execution_id="x", analysis="a", status=status).succeeded is (status is Status.SUCCEEDED)
