"""`make bench-executors`: what an executor adds to its engine's own command, by turns, in random order, in the same run.

docker run    `true` in a container with the same image, limits and restrictions, by the engine's command line
docker        the same as an execution, called in a process that has called before: workspace, supervisor, record, logs, cleanup included
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from forge_orchestration_tests.bench import Table
from forge_orchestration_tests.container_engine import import_busybox, running_engine

ROUNDS = 30


def main() -> int:
    """Run it; exit status 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    table = Table()
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as folder, running_engine() as engine:
        os.environ["FORGE_HOME"] = folder
        Path(folder, "settings.toml").write_text(f"docker_host = {json.dumps(engine.url)}\n")
        image = import_busybox(engine.url)
        for words in (("add", "boxed", "--image", image), ("build", "boxed")):
            subprocess.run([Path(sys.executable).with_name("forge"), "runtimes", *words], check=True, stderr=subprocess.DEVNULL)
        ways: dict[str, Callable[[], None]] = {"docker run": lambda: _docker_run(engine.url, image), "docker": _execution}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()  # warm
        for _ in range(rounds):
            for name in random.sample(list(ways), len(ways)):
                times[name].append(_timed(ways[name]))
        print(f"`true` in a container of busybox, medians of {rounds}")
        medians = {name: table.row(name, taken) for name, taken in times.items()}
        table.bar("docker / docker run", medians["docker"] / medians["docker run"], 1.3)
    return int(table.failed)


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


def _execution() -> None:
    import forge_orchestration

    record = forge_orchestration.run(["true"], runtime="boxed", executor="docker")
    assert record.succeeded, record.message


if __name__ == "__main__":
    sys.exit(main())
