"""The executor `slurm` beyond the contract: a full cluster, refusals, preemption, and parts of the cluster that go away."""

from __future__ import annotations

import collections
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord, record_from_json
from forge_orchestration_tests import conftest
from forge_orchestration_tests.conftest import PATIENCE, Forge, copy_runtime, wait_until
from forge_orchestration_tests.slurm_cluster import NODE_MIB, NODES, Cluster, running_cluster

SETTINGS = 'verify_max_age_s = 0\n[maximum]\nmemory = "1TiB"\ncpus = 64\n[defaults]\nmemory = "256MiB"\ncpus = 1\n[slurm]\npoll_s = 0.5\nrecord_s = 2\ncommands_per_minute = 600\n'
LONG = ("--", "sh", "-c", "echo up; exec sleep 300")
JOB_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as started:
        yield started


def home_of(forge_home: Path, folder: Path, settings: str = SETTINGS) -> Forge:
    home = folder / "home ü"
    home.mkdir(mode=0o700)
    conftest._homes.append(home)
    copy_runtime(forge_home, home)
    (home / "settings.toml").write_text(settings)
    return Forge(home)


@pytest.fixture(scope="module")
def forge(forge_home: Path, tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Forge:
    return home_of(forge_home, tmp_path_factory.mktemp("slurm"))


def on_slurm(*words: str) -> list[str]:
    return ["exec", "--json", "--executor", "slurm", *words]


def newest(forge: Forge, before: set[str]) -> ExecutionRecord | None:
    for one in forge.executions() - before:
        if (forge.home / "executions" / one / "record.json").exists():
            return forge.read_record(one)
    return None


def seen(forge: Forge, before: set[str], what: Callable[[ExecutionRecord], object]) -> ExecutionRecord:
    """The record of the new execution, once `what` holds of it."""

    def look() -> ExecutionRecord | None:
        record = newest(forge, before)
        return record if record is not None and what(record) else None

    return wait_until("the record", look, JOB_S)


def is_up(record: ExecutionRecord) -> bool:
    return record.status is Status.RUNNING and Path(record.logs["stdout"].path).read_bytes() == b"up\n"


def end_of(process: subprocess.Popen[str]) -> ExecutionRecord:
    said, complaints = process.communicate(timeout=JOB_S * PATIENCE)
    assert said, complaints
    return record_from_json(said)


def job_of(record: ExecutionRecord) -> str:
    assert record.native_id is not None and record.native_id.startswith("slurm:")
    return record.native_id.partition(":")[2]


def supervisor_of(record: ExecutionRecord) -> int:
    """Its pid: all nodes are on this host."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path("/proc", name, "cmdline").read_bytes()
            except OSError:
                continue
            if b"executors.node" in words and record.execution_id.encode() in words and b"/bin/sh" not in words:
                return int(name)
    raise AssertionError("its supervisor is not there")


def test_it_is_listed_with_what_it_can(forge: Forge) -> None:
    said = forge("executors", "list").stdout
    assert "slurm: available" in said and "cgroups of the node" in said


def test_the_record_names_node_and_job(forge: Forge, cluster: Cluster) -> None:
    record = forge.record("exec", "--executor", "slurm", "--", "true")
    assert record.succeeded and record.host in NODES
    words = [
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        f"--jobs={job_of(record)}",
        "--format=JobName%60,AllocCPUS,ReqMem,State",
    ]
    wanted = f"forge-{record.execution_id}|1|512M|COMPLETED"  # memory: the limit, and what the supervisor may have
    wait_until("its accounts", lambda: cluster.run(*words).strip() == wanted, 30)


class TestAFullCluster:
    def test_it_waits_says_why_and_can_be_canceled(self, forge: Forge, cluster: Cluster) -> None:
        words = ["sbatch", "--parsable", "--exclusive", "--nodes=3", "--output=/dev/null", "--wrap", "exec sleep 300"]
        holder = cluster.run(*words).strip()
        try:
            wait_until(
                "the job that takes all nodes", lambda: cluster.run("squeue", "-h", "-j", holder, "-o", "%T").strip() == "RUNNING"
            )
            before = forge.executions()
            with forge.started(*on_slurm(*LONG)) as process:
                record = seen(forge, before, lambda record: record.message)
                assert record.status is Status.QUEUED and record.message in (
                    "Waiting for Slurm: Resources.",
                    "Waiting for Slurm: Priority.",
                )
                process.send_signal(signal.SIGINT)
                ended = end_of(process)
            assert ended.end_reason is EndReason.CANCELED and ended.started_at is None
            assert (
                cluster.run("squeue", "--noheader", "--states=all", f"--jobs={job_of(ended)}", "--format=%T").strip() == "CANCELLED"
            )
        finally:
            cluster.run("scancel", holder)

    def test_who_must_make_room_is_preempted_and_did_not_fail(self, forge: Forge, cluster: Cluster) -> None:
        before = forge.executions()
        with forge.started(*on_slurm(*LONG)) as process:
            seen(forge, before, is_up)
            words = [
                "sbatch",
                "--parsable",
                "--partition=urgent",
                "--exclusive",
                "--nodes=3",
                "--output=/dev/null",
                "--wrap",
                "exec sleep 300",
            ]
            urgent = cluster.run(*words).strip()
            try:
                record = end_of(process)
            finally:
                cluster.run("scancel", urgent)
        assert (record.end_reason, record.status) == (EndReason.PREEMPTED, Status.LOST), record.message
        assert "PREEMPTED" in record.message


class TestRefused:
    @pytest.mark.parametrize(
        ("more", "words", "said"),
        [
            ('partition = "nosuch"\n', [], "invalid partition"), ('account = "nosuch"\n', [], "Invalid account"),
            ("", ["--memory", f"{2 * NODE_MIB}MiB"], "Ask for less"), ("", ["--cpus", "60"], "Ask for less"),
            ('partition = "short"\n', ["--wall-time", "1h"], "Ask for less"),
        ],
        ids=["partition", "account", "memory", "processors", "time"],
    )  # fmt: skip
    def test_it_is_a_sentence_and_not_tried_again(
        self, forge_home: Path, tmp_path: Path, cluster: Cluster, more: str, words: list[str], said: str
    ) -> None:
        forge = home_of(forge_home, tmp_path, SETTINGS + more)
        started = time.monotonic()
        done = forge(*on_slurm(*words, "--", "true"))
        record = record_from_json(done.stdout)
        assert (done.returncode, record.end_reason) == (5, EndReason.EXECUTOR_ERROR), record.message
        assert said in record.message, record.message
        assert time.monotonic() - started < 10 * PATIENCE
        assert not cluster.run("squeue", "--noheader", f"--name=forge-{record.execution_id}").strip()

    def test_without_slurm(self, forge: Forge, tmp_path: Path) -> None:
        tools = tmp_path / "bin"
        tools.mkdir()
        before = forge.executions()
        done = forge(*on_slurm("--", "true"), env={"PATH": str(tools)})
        assert done.returncode == 3 and "sinfo is not installed" in done.stderr and forge.executions() == before

    def test_a_clock_that_is_not_the_clusters(self, forge: Forge, cluster: Cluster) -> None:
        with cluster.another_clock("+1h") as environment:
            done = forge(*on_slurm("--", "true"), env=environment)
        assert done.returncode == 5 and "clocks of this host and of Slurm's agree" in done.stdout + done.stderr, done

    def test_the_scratch_folder_of_the_node_is_full(self, forge_home: Path, tmp_path: Path, cluster: Cluster) -> None:
        small = tmp_path / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", small], check=True)
        try:
            forge = home_of(forge_home, tmp_path, f'{SETTINGS}scratch_dir = "{small}"\n')
            record = record_from_json(forge(*on_slurm("--", "true")).stdout)
            assert record.end_reason is EndReason.SANDBOX_UNAVAILABLE, record.message
            assert "No space left" in record.message
            wait_until("the end of the job", lambda: not cluster.run("squeue", "--noheader", f"--jobs={job_of(record)}").strip())
        finally:
            subprocess.run(["umount", small], check=True)


class TestGoneAway:
    def test_the_controller_of_the_cluster(self, forge: Forge, cluster: Cluster) -> None:
        """The job goes on while it is stopped; nobody can be told to end, and nobody is."""
        before = forge.executions()
        script = "echo up; sleep 6; echo x > $FORGE_OUTPUTS/x; exit 7"
        with forge.started(*on_slurm("--", "sh", "-c", script)) as process:
            seen(forge, before, is_up)
            cluster.end("slurmctld")
            try:
                refused = forge(*on_slurm("--", "true"))
                record = end_of(process)
            finally:
                cluster.start_controller()
        assert (record.end_reason, record.exit_code) == (EndReason.NONZERO_EXIT, 7), record.message
        assert [one.path for one in record.outputs] == ["x"]
        assert refused.returncode == 5 and "Slurm does not answer" in refused.stderr and refused.stdout == ""

    def test_somebody_cancels_the_job(self, forge: Forge, cluster: Cluster) -> None:
        before = forge.executions()
        with forge.started(*on_slurm(*LONG)) as process:
            cluster.run("scancel", job_of(seen(forge, before, is_up)))
            record = end_of(process)
        assert record.end_reason is EndReason.CANCELED, record.message

    def test_the_daemon_of_its_node(self, forge: Forge, cluster: Cluster) -> None:
        """Slurm gives the node up; the supervisor there lives, and what it says is what counts."""
        before = forge.executions()
        with forge.started(*on_slurm("--", "sh", "-c", "echo up; sleep 15; echo x > $FORGE_OUTPUTS/x")) as process:
            record = seen(forge, before, is_up)
            cluster.end(record.host, signal.SIGKILL)
            try:
                ended = end_of(process)
            finally:
                cluster.start_node(record.host)
        assert ended.succeeded and [one.path for one in ended.outputs] == ["x"], ended.message

    def test_the_whole_node(self, forge: Forge, cluster: Cluster) -> None:
        before = forge.executions()
        with forge.started(*on_slurm(*LONG)) as process:
            record = seen(forge, before, is_up)
            supervisor = supervisor_of(record)
            step = int(Path(f"/proc/{supervisor}/stat").read_text().rsplit(")", 1)[1].split()[1])
            cluster.end(record.host, signal.SIGKILL)
            os.kill(step, signal.SIGKILL)
            os.kill(supervisor, signal.SIGKILL)
            try:
                ended = end_of(process)
            finally:
                cluster.start_node(record.host)
        assert ended.end_reason is EndReason.EXECUTOR_ERROR, ended.message
        assert "NODE_FAIL" in ended.message and record.host in ended.message
        # Slurm may go on to count the lost job's processors as taken
        words = ("sinfo", "--noheader", "--Node", f"--nodes={record.host}", "--partition=main", "--format=%t")
        wait_until("the node", lambda: cluster.run(*words).strip() in ("idle", "mix"), JOB_S)
        assert not cluster.run("squeue", "--noheader", f"--nodelist={record.host}")

    def test_its_supervisor(self, forge: Forge, cluster: Cluster) -> None:
        before = forge.executions()
        with forge.started(*on_slurm(*LONG)) as process:
            os.kill(supervisor_of(seen(forge, before, is_up)), signal.SIGKILL)
            record = end_of(process)
        assert record.end_reason is EndReason.EXECUTOR_ERROR and "FAILED" in record.message, record.message

    def test_whoever_waited_for_one_whose_job_is_gone(self, forge: Forge, cluster: Cluster) -> None:
        """Nobody waits any more, and nobody on the node has a last word: the next look finds it."""
        before = forge.executions()
        with forge.started(*on_slurm(*LONG)) as process:
            record = seen(forge, before, is_up)
            process.kill()
        os.kill(supervisor_of(record), signal.SIGKILL)
        wait_until("the end of the job", lambda: not cluster.run("squeue", "--noheader", f"--jobs={job_of(record)}").strip())

        def is_closed() -> bool:
            assert '"problems":[]' in forge("gc", "--json").stdout.replace(" ", "")
            return forge.read_record(record.execution_id).status.is_final

        wait_until("its end", is_closed, 20)
        assert forge.read_record(record.execution_id).end_reason is EndReason.EXECUTOR_ERROR
        assert f'"status":"{Status.FAILED}"' in forge("executions", "show", "--json", record.execution_id).stdout.replace(" ", "")

    def test_of_many_that_nobody_waits_for_each_is_looked_at(self, forge: Forge, cluster: Cluster) -> None:
        """The first still runs: it is not the only one that is asked about."""
        records = []
        for _ in range(3):
            before = forge.executions()
            with forge.started(*on_slurm(*LONG)) as process:
                records.append(seen(forge, before, is_up))
                process.kill()
        lost = records[1:]
        for record in lost:
            os.kill(supervisor_of(record), signal.SIGKILL)
        jobs = ",".join(job_of(record) for record in lost)
        wait_until("the end of their jobs", lambda: not cluster.run("squeue", "--noheader", f"--jobs={jobs}").strip())

        def are_closed() -> bool:
            forge("gc")
            return all(forge.read_record(record.execution_id).status.is_final for record in lost)

        wait_until("their ends", are_closed, 20)
        assert forge.read_record(records[0].execution_id).status is Status.RUNNING
        cluster.run("scancel", job_of(records[0]))
        wait_until("its end", lambda: forge.read_record(records[0].execution_id).status.is_final, 20)

    def test_a_dead_twin_is_not_waited_for(self, forge: Forge, cluster: Cluster, tmp_path: Path) -> None:
        folder = tmp_path / "twins"
        folder.mkdir()
        (folder / "run.sh").write_text(f"# {tmp_path}\necho up; sleep 15\n")
        (folder / "analysis.yaml").write_text("command: [sh, run.sh]\nexecutor: slurm\n")
        words = ("run", "--json", str(folder), "--cache", "use")
        before = forge.executions()
        with forge.started(*words) as process:
            first = seen(forge, before, is_up)
            process.kill()
        os.kill(supervisor_of(first), signal.SIGKILL)
        wait_until("the end of the job", lambda: not cluster.run("squeue", "--noheader", f"--jobs={job_of(first)}").strip())
        second = record_from_json(forge(*words).stdout)
        assert second.succeeded, second.message
        assert forge.read_record(first.execution_id).end_reason is EndReason.EXECUTOR_ERROR


class TestAWishToCancel:
    def test_reaches_the_supervisor_without_slurm(self, forge: Forge, cluster: Cluster) -> None:
        """The controller of the cluster is away when somebody asks."""
        before = forge.executions()
        code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (open('/forge/outputs/last', 'w').close(), sys.exit(0)));"
        with forge.started(
            *on_slurm("--grace", "20s", "--", "python", "-c", f"{code} print('up', flush=True); time.sleep(300)")
        ) as process:
            seen(forge, before, is_up)
            cluster.end("slurmctld")
            try:
                process.send_signal(signal.SIGINT)
                record = end_of(process)
            finally:
                cluster.start_controller()
        assert (record.end_reason, record.message) == (EndReason.CANCELED, "Canceled."), record.message
        assert [one.path for one in record.outputs] == ["last"]


def test_a_scratch_folder_that_others_may_write_is_refused(forge_home: Path, tmp_path: Path, cluster: Cluster) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    forge = home_of(forge_home, tmp_path, f'{SETTINGS}scratch_dir = "{shared}"\n')
    record = record_from_json(forge(*on_slurm("--", "true")).stdout)
    assert record.end_reason is EndReason.SANDBOX_UNAVAILABLE and "can be written by, another user" in record.message
    assert os.listdir(shared) == []


class TestNothingTwice:
    def test_an_answer_that_is_lost(self, forge: Forge, tmp_path: Path) -> None:
        """The job is there, and `sbatch` says that it is not: it is found again by its name."""
        tools = tmp_path / "bin"
        tools.mkdir()
        fake = tools / "sbatch"
        fake.write_text(
            '#!/bin/sh\nPATH=${PATH#*:}\nsbatch "$@" > /dev/null\necho "Socket timed out on send/recv operation" >&2\nexit 1\n'
        )
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
        done = forge(*on_slurm("--", "sh", "-c", "echo once"), env={"PATH": f"{tools}:{os.environ['PATH']}"})
        record = record_from_json(done.stdout)
        assert record.succeeded and Path(record.logs["stdout"].path).read_bytes() == b"once\n"

    def test_many_at_once_are_one_array_and_one_question(self, forge_home: Path, tmp_path: Path, cluster: Cluster) -> None:
        tools = tmp_path / "bin"
        tools.mkdir()
        said = tmp_path / "said"
        for name in ("sbatch", "squeue", "sacct", "sinfo"):
            fake = tools / name
            fake.write_text(f'#!/bin/sh\nPATH=${{PATH#*:}}\necho {name} >> {said}\nexec {name} "$@"\n')
            fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
        forge = home_of(forge_home, tmp_path)
        program = (
            "import msgspec, sys, threading; from forge_orchestration.api import command_spec; from forge_orchestration.engine import Engine;"
            "from forge_orchestration.settings import load_settings; settings = load_settings(); engine = Engine(settings); ended = [];"
            "spec = command_spec(('sh', '-c', 'echo $0; sleep 2', 'NUMBER'), settings, executor='slurm', limits={'memory': '128MiB'});"
            "specs = [msgspec.structs.replace(spec, command=(*spec.command[:-1], str(number))) for number in range(20)];"
            "threads = [threading.Thread(target=lambda spec: ended.append(engine.run(spec)), args=[spec]) for spec in specs];"
            "[one.start() for one in threads]; [one.join() for one in threads];"
            "print(*(f'{one.native_id} {one.command[-1]} {open(one.logs[\"stdout\"].path).read()}' for one in ended if one.succeeded), sep='', end='');"
            "sys.stderr.writelines(f'{one.message}\\n' for one in ended if not one.succeeded)"
        )
        environment = forge.environment({"PATH": f"{tools}:{os.environ['PATH']}"})
        started = time.monotonic()
        done = subprocess.run(
            [conftest.sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=200
        )
        took_s = time.monotonic() - started
        ended = [line.split() for line in done.stdout.splitlines()]
        assert done.stderr == "" and len(ended) == 20, done
        assert {said for _, _, said in ended} == {str(number) for number in range(20)}
        assert all(said == asked for _, asked, said in ended), "each is its own"
        asked = said.read_text().split()
        arrays = collections.Counter(job.partition("_")[0] for job, _, _ in ended)
        assert len(arrays) == asked.count("sbatch") <= 5, (arrays, asked)
        assert len(asked) - 5 <= 2 * (took_s / 0.5) + 4, "a question and, for those that are forgotten, another: each half a second"
