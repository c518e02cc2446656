"""`make bench-executors`: what an executor adds to its engine's own command, by turns, in random order, in the same run.

docker run    `true` in a container with the same image, limits and restrictions, by the engine's command line
docker        the same as an execution, called in a process that has called before: workspace, supervisor, record, logs, cleanup included
sbatch        `true` as a job that asks for the same, which tells its end in a file, looked for every 10 ms
slurm         the same as an execution
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from forge_orchestration.api import command_spec
from forge_orchestration.engine import Engine
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.bench import Table
from forge_orchestration_tests.container_engine import import_busybox, running_engine
from forge_orchestration_tests.slurm_cluster import running_cluster

ROUNDS = 30
QUEUED = 200


def main() -> int:
    """Run it; exit status 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--queued", type=int, default=QUEUED, help="executions that are given to Slurm at once")
    asked = parser.parse_args()
    table = Table()
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as folder:
        os.environ["FORGE_HOME"] = folder
        with running_engine() as engine:
            _docker(table, asked.rounds, engine.url)
        with running_cluster():
            _slurm(table, asked.rounds, asked.queued)
    return int(table.failed)


def _docker(table: Table, rounds: int, engine: str) -> None:
    _settings(f"docker_host = {json.dumps(engine)}\n")
    image = import_busybox(engine)
    for words in (("add", "boxed", "--image", image), ("build", "boxed")):
        _forge("runtimes", *words)
    medians = _medians(
        table, rounds, "`true` in a container of busybox", {"docker run": lambda: _docker_run(engine, image), "docker": lambda: _execution("docker", "boxed")}
    )  # fmt: skip
    table.bar("docker / docker run", medians["docker"] / medians["docker run"], 1.3)


def _slurm(table: Table, rounds: int, queued: int) -> None:
    _settings('[defaults]\nmemory = "128MiB"\ncpus = 1\n')
    _forge("runtimes", "build", "forge-python")
    settings = load_settings()
    medians = _medians(
        table,
        rounds,
        "`true` as a job on a cluster of three nodes",
        {"sbatch": _sbatch, "slurm": lambda: _execution("slurm", "forge-python")},
    )
    table.bar(
        "slurm / (1.2 sbatch and a poll interval)", medians["slurm"] / (1.2 * medians["sbatch"] + 1000 * settings.slurm.poll_s), 1.0
    )
    tools = Path(settings.home, "counted")
    with _counted(tools) as said:
        started = time.monotonic()
        engine = Engine(settings)
        spec = command_spec(("true",), settings, executor="slurm")
        with ThreadPoolExecutor(queued) as threads:
            ended = list(threads.map(lambda _: engine.run(spec), range(queued)))
        took_s = time.monotonic() - started
        given = len(said.read_text().split())
    assert all(record.succeeded for record in ended), {record.message for record in ended}
    print(f"{queued} executions at once: {took_s:.0f} s, {given} commands of Slurm's")
    table.bar("commands a second, after the first", (given - 1) / took_s, 2.0)


def _settings(text: str) -> None:
    Path(os.environ["FORGE_HOME"], "settings.toml").write_text(text)


def _forge(*words: str) -> None:
    subprocess.run(
        [Path(sys.executable).with_name("forge"), *words], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def _medians(table: Table, rounds: int, what: str, ways: dict[str, Callable[[], None]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # warm
    for _ in range(rounds):
        for name in random.sample(list(ways), len(ways)):
            times[name].append(_timed(ways[name]))
    print(f"{what}, medians of {rounds}")
    return {name: table.row(name, taken) for name, taken in times.items()}


@contextlib.contextmanager
def _counted(folder: Path) -> Iterator[Path]:
    """A file that each of Slurm's commands has a line in that is run meanwhile."""
    folder.mkdir()
    said = folder / "said"
    before = os.environ["PATH"]
    for name in ("sbatch", "squeue", "sacct", "sinfo", "scancel"):
        (folder / name).write_text(f'#!/bin/sh\nPATH=${{PATH#*:}}\necho {name} >> {said}\nexec {name} "$@"\n')
        (folder / name).chmod(0o700)
    os.environ["PATH"] = f"{folder}:{before}"
    try:
        yield said
    finally:
        os.environ["PATH"] = before


def _timed(way: Callable[[], None]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def _docker_run(engine: str, image: str) -> None:
    restrictions = (
        "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--memory=2g", "--memory-swap=2g",
        "--cpus=1", "--pids-limit=100", "--user=1879000000:1879000000", "--init", "--log-driver=local",
    )  # fmt: skip
    subprocess.run(["docker", "--host", engine, "run", *restrictions, image, "true"], check=True)


def _sbatch() -> None:
    done = Path(os.environ["FORGE_HOME"], "done")
    words = ["sbatch", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=384M", "--time=70", "--output=/dev/null", "--chdir=/"]
    subprocess.run([*words, "--wrap", f"true; touch '{done}'"], check=True, stdout=subprocess.DEVNULL)
    while not done.exists():
        time.sleep(0.01)
    done.unlink()


def _execution(executor: str, runtime: str) -> None:
    import forge_orchestration

    record = forge_orchestration.run(["true"], runtime=runtime, executor=executor)
    assert record.succeeded, record.message


if __name__ == "__main__":
    sys.exit(main())
