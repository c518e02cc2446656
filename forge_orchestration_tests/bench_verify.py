"""What the verification of a runtime costs: quick, beside `find` that prints the same facts; in full, beside `sha256sum` on all cores.

The files are those of this very environment, some 20,000, and ten copies of them.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from forge_orchestration.runtimes import seal

if TYPE_CHECKING:
    from forge_orchestration_tests.bench import Table

_ROUNDS = 7
_QUICK_MOST_S = {20_000: 0.150, 200_000: 1.5}
_FULL_MOST = 1.25  # of sha256sum's time: at least 80 % of its speed
_MEMORY_MOST_MIB = 200.0
_FULL = r"""
import re, sys
from pathlib import Path
from forge_orchestration.runtimes import seal
assert not seal.compare(Path(sys.argv[1]), seal.Tree(Path(sys.argv[2])), full=True)
print(int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024)
"""


def bench_verify(table: Table) -> None:
    """Print the rows and the bars."""
    original = Path(sys.prefix)
    with tempfile.TemporaryDirectory(prefix="forge-bench-", dir=original.parent) as folder:
        large = Path(folder, "copies")
        large.mkdir()
        for number in range(10):  # links, so that the disk need not hold them ten times
            subprocess.run(["cp", "-al", "--", str(original), str(large / str(number))], check=True)
        for prefix, files in ((original, 20_000), (large, 200_000)):
            _bench_quick(table, Path(folder, str(files)), prefix, files)
        _bench_full(table, Path(folder, "20000"), original)


def _bench_quick(table: Table, build: Path, prefix: Path, files: int) -> None:
    build.mkdir()
    entries = seal.make(prefix) if files == 20_000 else sorted(seal.scan(prefix), key=lambda one: one.path)
    tree = seal.Tree(prefix)
    seal.save(build, tree, entries)
    print(f"\nQuick verification of {len(entries)} entries")

    def ours() -> None:
        assert not seal.compare(build, tree, full=False)

    def find() -> None:
        command = ["find", str(prefix), "-printf", "%P %y %s %m %T@ %i %l\\n"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    times = _by_turns({"forge": ours, "find": find})
    medians = {name: table.row(f"{name}, {files:,} files", found) for name, found in times.items()}
    table.bar(f"quick, s for {files:,} files", medians["forge"] / 1000 * files / len(entries), _QUICK_MOST_S[files])
    print(f"         quick / find: {medians['forge'] / medians['find']:.2f}")


def _bench_full(table: Table, build: Path, prefix: Path) -> None:
    names = os.fsencode(build / "names")
    Path(os.fsdecode(names)).write_bytes(
        b"".join(os.fsencode(prefix / one.path) + b"\0" for one in seal.load(build) if one.kind == "f")
    )
    memory: list[float] = []
    print("\nFull verification of the same, as processes")

    def ours() -> None:
        command = [sys.executable, "-c", _FULL, str(build), str(prefix)]
        memory.append(int(subprocess.run(command, check=True, capture_output=True).stdout) / 2**20)

    def sha256sum() -> None:
        command = ["xargs", "-0", "-a", os.fsdecode(names), "-n", "400", "-P", str(len(os.sched_getaffinity(0))), "sha256sum", "--"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    times = _by_turns({"forge": ours, "sha256sum on all cores": sha256sum})
    medians = {name: table.row(name, found) for name, found in times.items()}
    table.bar("full / sha256sum on all cores", medians["forge"] / medians["sha256sum on all cores"], _FULL_MOST)
    table.bar("memory of a full verification, MiB", max(memory), _MEMORY_MOST_MIB)


def _by_turns(contenders: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work()
    for _ in range(_ROUNDS):
        for name in random.sample(list(contenders), len(contenders)):
            started = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - started)
    return times
