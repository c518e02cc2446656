"""What the sandbox costs while a program runs in it: file calls and computing, inside and bare, in turn, by one interpreter.

The program measures itself, so that starting it is left out: `make bench` has that elsewhere.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forge_orchestration_tests.bench import Table

RUNTIME = "bench-numpy"
_ROUNDS = 20
_PASSES = 6
_FILE = "/usr/lib/os-release"  # as deep and as warm inside as outside
_MOST = {"20,000 stat": 1.1, "5,000 open and close": 1.1, "numpy": 1.02}
_PROGRAM = f"""
import json, os, time
import numpy as np

def stat():
    for _ in range(20_000): os.stat({_FILE!r})

def open_close():
    for _ in range(5_000): os.close(os.open({_FILE!r}, os.O_RDONLY))

left, right = (np.random.default_rng(seed).random((400, 400)) for seed in (1, 2))
out, flat = np.empty_like(left), left.ravel().copy()

def numpy():
    for _ in range(5):
        np.matmul(left, right, out=out)
        np.sqrt(flat, out=flat); np.exp(flat, out=flat); flat.sort()
        np.copyto(flat, right.ravel())

times = {{}}
for _ in range({_PASSES}):
    for name, work in zip({list(_MOST)!r}, (stat, open_close, numpy)):
        started = time.perf_counter()
        work()
        times.setdefault(name, []).append(time.perf_counter() - started)
# the quickest pass: what disturbs one (another program, a first fault) is no cost of the sandbox; a cost is there in every one
print(json.dumps({{name: min(found) for name, found in times.items()}}))
"""


def write_runtime(home: Path) -> None:
    """Define `RUNTIME` for the deployment at `home`: numpy alone, at the version and hashes of the lock of forge-singlecell."""
    import forge_orchestration

    lock = Path(forge_orchestration.__file__).parent / "runtimes/definitions/forge-singlecell/requirements.txt"
    found = re.search(r"^numpy==(?:.*\\\n)*.*\n", lock.read_text(), re.MULTILINE)
    assert found is not None
    folder = home / "definitions" / RUNTIME
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text(found[0])
    (folder / "runtime.toml").write_text(
        'kind = "venv"\ndescription = "numpy alone"\nlock = "requirements.txt"\npython = ">=3.11,<3.14"\n'
        """self_test = ["python", "-c", "import numpy"]\n"""
    )


def bench_inside(table: Table) -> None:
    """Print what the same work takes bare and inside; one thread, one processor's worth of time."""
    import forge_orchestration
    from forge_orchestration.runtimes import catalog
    from forge_orchestration.settings import load_settings

    runtime = catalog.resolve(RUNTIME, load_settings())

    def inside() -> str:
        record = forge_orchestration.run(["python", "-c", _PROGRAM], runtime=RUNTIME, threads=1, limits={"cpus": 1}, check=True)
        return Path(record.logs["stdout"].path).read_text()

    def bare() -> str:
        environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
        command = [runtime.prefix / "bin/python", "-c", _PROGRAM]
        return subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout

    contenders = {"bare": bare, "inside": inside}
    times: dict[str, dict[str, list[float]]] = {name: {work: [] for work in _MOST} for name in contenders}
    for _ in range(_ROUNDS):
        for name in random.sample(list(contenders), len(contenders)):
            for work, best_s in json.loads(contenders[name]()).items():
                times[name][work].append(best_s)
    print(f"\nwhile it runs, best of {_PASSES} passes in a process, medians of {_ROUNDS} processes, in turn")
    for work in _MOST:
        for name in contenders:
            table.row(f"{work}, {name}", times[name][work])
    for work, most in _MOST.items():
        bare_s, inside_s = (_at_full_speed(times[name][work]) for name in ("bare", "inside"))
        table.bar(f"{work}, inside / bare, the quickest quarter of each", inside_s / bare_s, most)


def _at_full_speed(times_s: list[float]) -> float:
    """The mean of the quickest quarter. A shared processor has two speeds, some 1.4 apart, and changes between them within seconds:
    the median of one row falls on the one, that of another on the other. What the sandbox costs is in the quickest too.
    """
    return statistics.fmean(sorted(times_s)[: len(times_s) // 4])
