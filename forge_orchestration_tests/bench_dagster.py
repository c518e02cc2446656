"""`make bench-dagster`: what a step costs in Dagster, and how soon a launched run works, beside Dagster's own, in the same run.

sandboxed          20 assets, each `true` in a sandbox with record, logs, messages and metadata, by `sandboxed_executor`
multiprocess       20 ops that do nothing, by Dagster's default executor: a process each
in process         20 ops that start `true` with `subprocess`, by Dagster's `in_process_executor`: no sandbox, no limit, no log
in process, kept   the same, its events stored as ours are: in databases that stay open
sandboxed, PostgreSQL   ours with dagster-postgres: a server on this host, its socket, its defaults

The others have Dagster as it comes. All take as many steps at one time and are timed by Dagster: from a run's start to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import dagster as dg
import psutil
import websockets

from forge_orchestration.operations.workers import WorkerFolder
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.bench import Table
from forge_orchestration_tests.faults.test_dagster_kills import kill_the_worker, see_nothing_left, ten_steps
from forge_orchestration_tests.integration.dagster_support import (
    FINAL,
    MONITOR_S,
    NO_QUEUE,
    Deployment,
    Webserver,
    in_postgres,
    wait_for,
)
from forge_orchestration_tests.integration.postgres_server import Server, running_server

STEPS = 20
LINES = 25
FLOOD_BYTES = 200 * 2**20
PARTITIONS = 2000
MANY, THREADS = 200, 16
KILLS = 30
EVENTS, WRITERS = 200, (1, 10, 20)
ROUNDS = 5
PLAIN = f"""
import subprocess
import dagster as dg

@dg.op
def nothing(): pass

@dg.op
def bare(): subprocess.run(["true"], check=True)

def many(name, op, executor):
    @dg.job(name=name, executor_def=executor)
    def job():
        for number in range({STEPS}): op.alias(f"s{{number}}")()
    return job

defs = dg.Definitions(jobs=[
    many("multiprocess", nothing, dg.multiprocess_executor.configured({{"max_concurrent": {os.cpu_count()}}})),
    many("in_process", bare, dg.in_process_executor),
])
"""
MANY_STEPS = f"""
import dagster as dg
from forge_orchestration.orchestration.sandboxed_executor import sandboxed_executor

TRUSTED = {{"forge/trusted": "true"}}

@dg.op(tags=TRUSTED, retry_policy=dg.RetryPolicy(max_retries=1))
def now_and_then(context) -> int:
    if context.op.name.endswith("0") and not context.retry_number:
        raise ValueError("not yet")
    return 1

@dg.op(tags=TRUSTED)
def total(context, numbers: list[int]) -> None:
    context.log.info(f"in all {{sum(numbers)}}")

@dg.job(executor_def=sandboxed_executor.configured({{"max_concurrent": {THREADS}}}))
def many():
    total([now_and_then.alias(f"n{{number}}")() for number in range({MANY})])

defs = dg.Definitions(jobs=[many])
"""
SANDBOXED = """
import dagster as dg
from forge_orchestration.orchestration.definitions import analysis_assets
from forge_orchestration.orchestration.sandboxed_executor import sandboxed_executor
from forge_orchestration.analyses import analysis_folders
from forge_orchestration.settings import load_settings

settings = load_settings()
folders = {name: folder for name, folder in analysis_folders(settings).items() if name.startswith("s")}
defs = dg.Definitions(
    assets=[asset for one in analysis_assets(folders, settings, ["forge-python"]) for asset in one.assets],
    jobs=[dg.define_asset_job("sandboxed", selection=list(folders))],
    executor=sandboxed_executor,
)
"""


def main() -> int:
    """Print the tables; exit status 1 if a bar does not hold."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--partitions", type=int, default=PARTITIONS)
    arguments.add_argument("--kills", type=int, default=KILLS)
    options = arguments.parse_args()
    rounds = options.rounds
    folder = Path(tempfile.mkdtemp(prefix="forge-bench-dagster-"))
    table = Table()
    try:
        made = Deployment(folder)
        os.environ["FORGE_HOME"] = str(made.home)
        made.build_runtime()
        for number in range(STEPS):
            made.add_analysis(f"s{number:02}", command="['true']")
        with running_server(fsync=True) as database:
            bench_steps(table, made, rounds, database)
            bench_storage(made, database)
        bench_launch(table, made, rounds)
        bench_logs(table, made)
        bench_partitions(table, made, options.partitions)
        bench_many(made)
        bench_kills(table, folder, options.kills)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if table.failed else 0


def bench_steps(table: Table, made: Deployment, rounds: int, database: Server) -> None:
    """Twenty steps that do next to nothing."""
    for name, text in (("plain", PLAIN), ("forge_sandboxed", SANDBOXED)):
        (made.home.parent / f"{name}.py").write_text(text)
    stock = made.home.parent / "stock"
    stock.mkdir()
    (stock / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    ours = made.launch_folder()
    jobs = {
        "sandboxed": ("forge_sandboxed", "sandboxed", ours),
        "multiprocess": ("plain", "multiprocess", stock),
        "in process": ("plain", "in_process", stock),
        "in process, kept": ("plain", "in_process", ours),
        "sandboxed, PostgreSQL": (
            "forge_sandboxed",
            "sandboxed",
            made.changed("postgres", in_postgres(database.url)).launch_folder(),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name in random.sample(list(jobs), len(jobs)):
            took_s = _run_s(made, *jobs[name])
            if turn:  # the first time without a clock
                times[name].append(took_s)
    print(f"\n{STEPS} steps, {os.cpu_count()} at one time, from a run's start to its end, medians of {rounds}, in turn")
    medians = {name: table.row(name, found) for name, found in times.items()}
    print(f"  a step in a sandbox: {medians['sandboxed'] / STEPS:.1f} ms")
    print(f"  sandboxed / in process, kept: {medians['sandboxed'] / medians['in process, kept']:.2f}")
    table.bar("sandboxed / multiprocess", medians["sandboxed"] / medians["multiprocess"], 1 / 15)
    table.bar("sandboxed / in process", medians["sandboxed"] / medians["in process"], 2.0)


STORE = """
import sys, time
import dagster as dg

with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    run = instance.create_run_for_job(dg.job(name="writes")(lambda: None))
    instance.report_engine_event("begun", run)
    print("ready", flush=True)
    sys.stdin.read(1)
    for _ in range(int(sys.argv[2])):
        began = time.perf_counter()
        instance.report_engine_event("an event", run)
        print(time.perf_counter() - began)
"""


def bench_storage(made: Deployment, database: Server) -> None:
    """An event, written by one run worker, and by as many at once as the queue lets run and more."""
    homes = {
        "SQLite, kept open": made.launch_folder(),
        "SQLite, Dagster's own": made.home.parent / "stock",
        "PostgreSQL": made.changed("postgres", in_postgres(database.url)).launch_folder(),
    }
    print(f"\nan event of {EVENTS} that each of so many processes writes, beside each other")
    for writers in WRITERS:
        for name in random.sample(list(homes), len(homes)):
            took = sorted(_stored_s(made, homes[name], writers))
            print(
                f"  {writers:2} writing   {name:22} median {took[len(took) // 2] * 1e3:7.1f} ms   "
                f"99 % {took[len(took) * 99 // 100] * 1e3:7.1f} ms   worst {took[-1] * 1e3:7.1f} ms"
            )


def _stored_s(made: Deployment, home: Path, writers: int) -> list[float]:
    """Seconds of each event."""
    command = [sys.executable, "-c", STORE, str(home), str(EVENTS)]
    environment = {**made.environment, "DAGSTER_HOME": str(home)}
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(command, cwd=home, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            for _ in range(writers)
        ]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("x")
            process.stdin.flush()
        took = [float(line) for process in processes for line in process.communicate()[0].splitlines()]
    assert len(took) == writers * EVENTS
    return took


def _run_s(made: Deployment, module: str, job: str, home: Path) -> float:
    before = _run_ids(home)
    file = str(made.home.parent / f"{module}.py")
    command = [sys.executable, "-m", "dagster", "job", "execute", "-f", file, "-a", "defs", "-j", job]
    environment = {**made.environment, "DAGSTER_HOME": str(home)}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (run_id,) = _run_ids(home) - before
    with _instance(home) as instance:
        record = instance.get_run_record_by_id(run_id)
        assert record is not None and record.start_time is not None and record.end_time is not None
        return record.end_time - record.start_time


def _run_ids(home: Path) -> set[str]:
    with _instance(home) as instance:
        return {run.run_id for run in instance.get_runs()}


def _instance(home: Path) -> dg.DagsterInstance:
    return dg.DagsterInstance.from_config(str(home))


QUEUED_MORE_S = 1.5


def bench_launch(table: Table, made: Deployment, rounds: int) -> None:
    """From the launch in the UI to the first step: our launcher, Dagster's default one, and ours through the queue."""
    default = {
        "  module: forge_orchestration.orchestration.run_launcher\n  class: SandboxRunLauncher\n  config:\n"
        "    memory: 1GiB\n    pids: 512\n    grace: 30s\n": "  module: dagster.core.launcher\n  class: DefaultRunLauncher\n",
        "  max_resume_run_attempts: 3\n": "  max_resume_run_attempts: 0\n",
    }
    with (
        made.changed("direct", NO_QUEUE).webserver() as ours,
        made.changed("default", NO_QUEUE | default).webserver() as dagsters,
        made.daemon(),
        made.webserver() as through_the_queue,
    ):
        servers = {"SandboxRunLauncher": ours, "DefaultRunLauncher": dagsters, "through the queue": through_the_queue}
        times: dict[str, list[float]] = {name: [] for name in servers}
        for turn in range(rounds + 1):
            for name in random.sample(list(servers), len(servers)):
                took_s = _first_step_s(made, servers[name])
                if turn:
                    times[name].append(took_s)
    print(f"\nfrom launchRun to the first step, medians of {rounds}, in turn")
    direct, default_one, in_queue = (table.row(name, found) for name, found in times.items())
    table.bar("our launcher / the default one", direct / default_one, 1.0)
    table.bar("through the queue, seconds more", (in_queue - direct) / 1000, QUEUED_MORE_S)


def bench_logs(table: Table, made: Deployment) -> None:
    """How soon a line is seen in the UI, and what a flood of them costs a run's worker."""
    lines = f"import time\nfor _ in range({LINES}):\n    print(time.time(), flush=True)\n    time.sleep(0.2)\n"
    flood = f"import os\nfor _ in range({FLOOD_BYTES >> 16}):\n    os.write(1, b'x' * 65535 + b'\\n')\n"
    made.add_analysis("lines", lines)
    made.add_analysis("flood", flood)
    with made.changed("logs", NO_QUEUE).webserver() as server:
        first, second = server.start("lines"), server.start("lines")  # two steps in one process have logs of their own too
        seen_after_s = asyncio.run(_seen_after_s(server, made, first))
        server.wait(second)
        print("\na line of an analysis, from its printing to the GraphQL subscription")
        seen_ms = table.row("seen", seen_after_s)
        table.bar("seconds, median", seen_ms / 1000, 0.5)
        peaks = {}
        for name in ("s00", "flood"):
            run_id = server.start(name)
            assert server.wait(run_id) == "SUCCESS"
            folder = WorkerFolder(load_settings(made.home).workers_dir, run_id)
            end = wait_for("the worker's end", folder.end)
            assert end.peak_memory_bytes is not None
            peaks[name] = end.peak_memory_bytes / 2**20
    print(f"\na run's worker while an analysis prints {FLOOD_BYTES / 2**20:.0f} MiB")
    print(f"  peak {peaks['flood']:.1f} MiB, and {peaks['s00']:.1f} MiB of one that prints nothing")
    table.bar("MiB more", peaks["flood"] - peaks["s00"], 20)


async def _seen_after_s(server: Webserver, made: Deployment, run_id: str) -> list[float]:
    """By the same subscription as the UI has."""
    captured = wait_for(
        "the step's logs", lambda: [one for one in server.events(run_id) if one["__typename"] == "LogsCapturedEvent"]
    )
    query = "subscription($key: [String!]!) { capturedLogs(logKey: $key) { stdout cursor } }"
    start = {"query": query, "variables": {"key": [run_id, "compute_logs", captured[0]["fileKey"]]}}
    after_s: list[float] = []
    address = server.url.replace("http", "ws") + "/graphql"
    async with websockets.connect(address, subprotocols=[websockets.Subprotocol("graphql-ws")]) as channel:
        await channel.send(json.dumps({"type": "connection_init", "payload": {}}))
        await channel.send(json.dumps({"type": "start", "id": "1", "payload": start}))
        while len(after_s) < LINES:
            answer = json.loads(await asyncio.wait_for(channel.recv(), 60))
            if answer["type"] == "data":
                now = time.time()
                text = answer["payload"]["data"]["capturedLogs"]["stdout"] or ""
                after_s += [now - float(line) for line in text.split()]
    return after_s[5:]  # those that were there before anybody looked


def bench_partitions(table: Table, made: Deployment, count: int) -> None:
    """All partitions of an analysis in one run: whether the last cost what the first did, in time and in the worker's memory."""
    made.add_analysis("parts", definition="partitions: {dynamic: parts}\n", command="['true']")
    direct = made.changed("parts", NO_QUEUE)
    keys = [f"p{number:05}" for number in range(count)]
    with _instance(direct.launch_folder()) as instance:
        instance.add_dynamic_partitions("parts", keys)
    with direct.webserver() as server:
        run_id = server.start_range("parts", keys[0], keys[-1])
        folder = WorkerFolder(load_settings(made.home).workers_dir, run_id)
        worker = psutil.Process(wait_for("the worker", folder.worker).process.pid)
        seen: list[tuple[float, float]] = []
        while server.status(run_id) not in FINAL:
            with contextlib.suppress(psutil.NoSuchProcess):
                seen.append((time.time(), worker.memory_info().rss / 2**20))
            time.sleep(1)
        assert server.status(run_id) == "SUCCESS"
    with _instance(direct.launch_folder()) as instance:
        told = [one.timestamp for one in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)]
    assert len(told) == count
    first_ms, last_ms = ((part[-1] - part[0]) * 1000 / (len(part) - 1) for part in (told[:101], told[-101:]))
    early, late = next(mib for at, mib in seen if at >= told[100]), seen[-1][1]
    print(f"\n{count} partitions in one run, {os.cpu_count()} at one time: {told[-1] - told[0]:.0f} s")
    print(f"  a partition of the first hundred {first_ms:.1f} ms, of the last hundred {last_ms:.1f} ms")
    print(f"  the worker has {early:.1f} MiB after a hundred, {late:.1f} MiB at the end")
    table.bar("a partition, last hundred / first hundred", last_ms / first_ms, 1.25)
    table.bar("MiB more at the end", late - early, 20)


def _first_step_s(made: Deployment, server: Webserver) -> float:
    asked = time.time()
    run_id = server.start("s00")
    assert server.wait(run_id) == "SUCCESS"
    with _instance(made.launch_folder()) as instance:
        (start,) = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START)
    return start.timestamp - asked


def bench_many(made: Deployment) -> None:
    """Many steps, of which each tenth is tried twice, and one that waits for all: whether all of it is told, and told once."""
    (made.home.parent / "many.py").write_text(MANY_STEPS)
    home = made.launch_folder()
    before = _run_ids(home)
    took_s = _run_s(made, "many", "many", home)
    (run_id,) = _run_ids(home) - before
    with _instance(home) as instance:
        events = [entry.dagster_event for entry in instance.all_logs(run_id) if entry.dagster_event is not None]
        said = [entry.user_message for entry in instance.all_logs(run_id)]
    kinds = Counter(event.event_type_value for event in events)
    twice = MANY // 10
    wanted = {
        "STEP_START": MANY + 1,
        "STEP_SUCCESS": MANY + 1,
        "STEP_UP_FOR_RETRY": twice,
        "STEP_RESTARTED": twice,
        "STEP_FAILURE": 0,
    }
    assert {kind: kinds[kind] for kind in wanted} == wanted, kinds
    assert f"in all {MANY}" in said
    print(f"\n{MANY} steps on {THREADS} threads, {twice} of them tried twice: {took_s:.1f} s, every event once")


def bench_kills(table: Table, folder: Path, kills: int) -> None:
    """A run of ten steps whose worker is killed at a random moment, again and again: how long until the next one goes on."""
    own = folder / "kills"
    own.mkdir()
    made = ten_steps(own)
    os.environ["FORGE_HOME"] = str(made.home)
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"\n{kills} kills of the worker of a run of ten steps, seed {seed}")
    chance = random.Random(seed)
    with _instance(made.launch_folder()) as instance, made.daemon(), made.webserver() as server:
        took_s = [kill_the_worker(made, instance, server, chance) for _ in range(kills)]
    see_nothing_left(made)
    table.row("until the next worker", took_s)
    print("  every run succeeded, no step that had succeeded was run again, nothing is left")
    table.bar(f"slowest, against {MONITOR_S} s between two looks and 5 s", max(took_s) / (MONITOR_S + 5), 1.0)


if __name__ == "__main__":
    sys.exit(main())
