"""`make bench-resume`: what a workflow of many small tasks costs, run and run again, beside Snakemake, in the same run.

snakemake          the tasks as jobs of one shell rule: from PyPI, in an environment of its own; a process a request, as its user starts it
forge              the same command as executions of one analysis, by the Python call from two threads of one process, each in a sandbox
                   and with a record; the request again takes every result, and each of these executions has its record too
one reused         a single execution that takes a result, in a process that has called before
the store          with many executions in it, against the store with few: what is asked of it by those who list, reuse and read upstream

Both work on two tasks at one time, read the same file and must leave the same bytes. A process counts from its start to its end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration_tests.bench import Table

SNAKEMAKE = "9.27.1"
TASKS = 1000
EXECUTIONS = 100_000
ROUNDS = 3
AGAIN = 3  # requests of what is there already, in each round
REUSED = 200
_SMALL = 100  # how many times smaller the store is that the large one is held against
_ANALYSES = 10
_STEPS = 20  # executions of one Dagster run
_CALLS, _SAMPLES = 20, 150
_EVERY_S = 7.3
_TEXT = Path("/usr/lib/os-release")
_ANALYSIS = """\
command: [sh, -c, 'cat "$FORGE_INPUTS/text" "$FORGE_PARAMS" > "$FORGE_OUTPUTS/out.txt"']
inputs: {text: {path: ../text.txt}}
outputs: {out: out.txt}
params: {i: {type: int}}
cache: use
"""
_SNAKEFILE = """\
rule all:
    input: expand("out/{{i}}.txt", i=range({tasks}))

rule task:
    input: "text.txt"
    output: "out/{{i}}.txt"
    shell: '''printf '{{{{"i":%d}}}}' {{wildcards.i}} | cat {{input}} - > {{output}}'''
"""
_ALL = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
import forge_orchestration

def run(i):
    return forge_orchestration.run(sys.argv[1], params={"i": i}, check=True)

with ThreadPoolExecutor(2) as pool:
    records = list(pool.map(run, range(int(sys.argv[2]))))
print(json.dumps({"reused": sum(one.cache.hit for one in records), "outputs": [one.outputs[0].sha256 for one in records]}))
"""
_ONE = """
import json, sys, time
import forge_orchestration

times = []
for _ in range(int(sys.argv[2]) + 1):
    started = time.perf_counter()
    assert forge_orchestration.run(sys.argv[1], params={"i": 0}).cache.hit
    times.append(time.perf_counter() - started)
print(json.dumps(times[1:]))
"""


class Workflow:
    """The same tasks for both, in a folder of their own. `name` makes each workflow's results new to Forge.

    Attributes:
        analysis: The folder of the analysis whose executions the tasks are.
    """

    def __init__(self, parent: Path, name: str, tasks: int, snakemake: Path) -> None:
        self._folder, self._tasks, self._snakemake = parent / name, tasks, snakemake
        self.analysis = self._folder / name
        self.analysis.mkdir(parents=True)
        shutil.copyfile(_TEXT, self._folder / "text.txt")
        (self._folder / "Snakefile").write_text(_SNAKEFILE.format(tasks=tasks))
        (self.analysis / "analysis.yaml").write_text(_ANALYSIS)
        self._said: dict[str, list[str]] = {}

    def with_snakemake(self) -> float:
        """Ask for all of it; returns the seconds that the process took."""
        environment = os.environ | {"XDG_CACHE_HOME": str(self._folder / "cache")}
        return _timed([str(self._snakemake), "--cores", "2", "--quiet", "all"], self._folder, environment)[0]

    def with_forge(self, reused: int) -> float:
        """The same, of which so many must be reused."""
        took_s, said = _timed([sys.executable, "-c", _ALL, str(self.analysis), str(self._tasks)], None, None)
        self._said = json.loads(said)
        assert self._said["reused"] == reused, f"{self._said['reused']} were reused"
        return took_s

    def see_alike(self) -> None:
        """Whether both have made the same."""
        made = [(self._folder / f"out/{number}.txt").read_bytes() for number in range(self._tasks)]
        assert [hashlib.sha256(one).hexdigest() for one in made] == self._said["outputs"]


def main() -> int:
    """Print the tables; exit status 1 if a bar does not hold."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tasks", type=int, default=TASKS)
    arguments.add_argument("--executions", type=int, default=EXECUTIONS, help="in the large store")
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    options = arguments.parse_args()
    table = Table()
    # not /tmp, which may be in memory: what is reused is brought to a disk
    folder = Path(tempfile.mkdtemp(prefix="forge-bench-", dir="/var/tmp"))
    home = folder / "home"
    os.environ["FORGE_HOME"] = str(home)
    try:
        _timed([sys.executable, "-m", "forge_orchestration.cli.main", "runtimes", "build", "forge-python"], None, None)
        snakemake = _installed_snakemake(folder)
        workflows = [Workflow(folder, f"tasks{number}", options.tasks, snakemake) for number in range(options.rounds)]
        bench_workflow(table, workflows, options.tasks)
        bench_reused(table, workflows[0])
        bench_store(table, folder, home / "executions", options.executions)
    finally:
        shutil.rmtree(folder)
    return 1 if table.failed else 0


def bench_workflow(table: Table, workflows: list[Workflow], tasks: int) -> None:
    """All tasks, then the same request again, by both in turn."""
    names = ("snakemake", "forge")
    first: dict[str, list[float]] = {name: [] for name in names}
    again: dict[str, list[float]] = {name: [] for name in names}
    for workflow in workflows:
        for times, asked, reused in ((first, 1, 0), (again, AGAIN, tasks)):
            for name in random.sample(names * asked, len(names) * asked):
                times[name].append(workflow.with_snakemake() if name == "snakemake" else workflow.with_forge(reused))
        workflow.see_alike()
    print(f"\n{tasks} tasks, two at one time, medians of {len(workflows)}, in turn; Snakemake {SNAKEMAKE}")
    snakemake_ms, forge_ms = (table.row(name, first[name]) for name in names)
    print(f"  a task: snakemake {snakemake_ms / tasks:.1f} ms, forge {forge_ms / tasks:.1f} ms")
    table.bar("the first time, forge / snakemake", forge_ms / snakemake_ms, 1.0)
    print(f"\nthe same request again, medians of {len(workflows) * AGAIN}, in turn")
    snakemake_ms, forge_ms = (table.row(name, again[name]) for name in names)
    print(f"  a task: snakemake {snakemake_ms / tasks:.2f} ms, forge {forge_ms / tasks:.2f} ms, with a record of each")
    table.bar("again, forge / snakemake", forge_ms / snakemake_ms, 3.0)


def bench_reused(table: Table, workflow: Workflow) -> None:
    """One execution that takes a result, after another, in one process."""
    times = json.loads(_timed([sys.executable, "-c", _ONE, str(workflow.analysis), str(REUSED)], None, None)[1])
    print(f"\none execution that takes a result, in a warm process, median of {len(times)}")
    reused_ms = table.row("reused", times)
    table.bar("ms", reused_ms, 5.0)


def bench_store(table: Table, folder: Path, executions_dir: Path, executions: int) -> None:
    """What is asked of a store, of one with many executions and of one with few, in turn."""
    few = executions // _SMALL
    records = [ExecutionFolder(executions_dir, one).read_record() for one in os.listdir(executions_dir)]
    ran = next(one for one in records if one.cache.reusable)
    reused = next(one for one in records if one.cache.hit)
    stores = {count: _FilledStore(folder / f"store-{count}", count, ran, reused) for count in (few, executions)}
    print(f"\na store with {executions} executions against one with {few}: {_CALLS} calls, medians of {_SAMPLES}, in turn")
    try:
        for what, ask in _QUESTIONS.items():
            times: dict[int, list[float]] = {count: [] for count in stores}
            for _ in range(_SAMPLES):
                for count in random.sample(list(stores), len(stores)):
                    started = time.perf_counter()
                    for _ in range(_CALLS):
                        ask(stores[count])
                    times[count].append(time.perf_counter() - started)
            few_ms, many_ms = (table.row(f"{what}, {count}", times[count]) for count in stores)
            table.bar(what, many_ms / few_ms, 1.5)
    finally:
        for store in stores.values():
            store.index.close()


class _FilledStore:
    """A store with so many executions: each first one has run for a step of a Dagster run, each second one has taken its result.

    Attributes:
        index: The open store.
    """

    def __init__(self, folder: Path, count: int, ran: ExecutionRecord, reused: ExecutionRecord) -> None:
        folder.mkdir()
        self._path, self._count, self._began = folder / "store.db", count, ran.queued_at - count * _EVERY_S
        self.index = Store(self._path)
        for number in range(count):
            at = self._began + number * _EVERY_S
            like = (ran, reused)[number % 2]
            moved = {name: at + (then - like.queued_at) for name in ("started_at", "ended_at") if (then := getattr(like, name))}
            self.index.save(
                msgspec.structs.replace(
                    like, execution_id=self._id(number), analysis=self._analysis(number), fingerprint=self._digest(number // 2),
                    dagster_run_id=self._run_id(number) if like is ran else None, queued_at=at, **moved,
                )
            )  # fmt: skip

    def open_another(self) -> None:
        Store(self._path).close()

    def list_latest(self) -> None:
        assert self.index.list()

    def list_succeeded(self) -> None:
        assert self.index.list(status="succeeded")

    def find_results(self) -> None:
        """As each request does that may take one."""
        number = self._any() // 2
        assert self.index.results(self._digest(number)) == [self._id(2 * number)]

    def find_latest_success(self) -> None:
        """As each does that reads `execution://ANALYSIS/…`."""
        assert self.index.latest_success(self._analysis(self._any()), None)

    def find_before_new_partition(self) -> None:
        """As each execution does that begins: whether there is a checkpoint to go on from."""
        assert not self.index.latest_of(self._analysis(self._any()), "new")

    def find_latest_success_of_run(self) -> None:
        """The same within a Dagster run."""
        number = self._any() // 2 * 2
        assert self.index.latest_success(self._analysis(number), self._run_id(number))

    def _any(self) -> int:
        return random.randrange(self._count)

    def _id(self, number: int) -> str:
        at = self._began + number * _EVERY_S
        return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(at))}{int(at * 1000) % 1000:03d}-{number:08x}"

    def _analysis(self, number: int) -> str:
        return f"analysis_{number % _ANALYSES}"

    def _run_id(self, number: int) -> str:
        return f"run {number // _STEPS}"

    def _digest(self, number: int) -> str:
        return hashlib.sha256(f"{self._path} {number}".encode()).hexdigest()


_QUESTIONS: dict[str, Callable[[_FilledStore], None]] = {
    "open and close": _FilledStore.open_another,
    "list": _FilledStore.list_latest,
    "list what succeeded": _FilledStore.list_succeeded,
    "results of a fingerprint": _FilledStore.find_results,
    "latest success of an analysis": _FilledStore.find_latest_success,
    "earlier ones of a new partition": _FilledStore.find_before_new_partition,
    "latest success in a Dagster run": _FilledStore.find_latest_success_of_run,
}


def _installed_snakemake(folder: Path) -> Path:
    """The command, started once: what a first start reads and writes is no cost of a request."""
    uv, environment = Path(sys.executable).with_name("uv"), folder / "snakemake"
    _timed([str(uv), "venv", "--quiet", "--python", sys.executable, str(environment)], None, None)
    python = environment / "bin/python"
    install = [str(uv), "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), f"snakemake=={SNAKEMAKE}"]
    _timed(install, None, None)
    command = environment / "bin/snakemake"
    _timed([str(command), "--version"], None, None)
    return command


def _timed(command: list[str], folder: Path | None, environment: dict[str, str] | None) -> tuple[float, str]:
    """Seconds until the command, which must succeed, has ended, and what it said."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    took_s = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return took_s, done.stdout


if __name__ == "__main__":
    sys.exit(main())
