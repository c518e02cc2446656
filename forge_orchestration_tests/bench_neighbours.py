"""`make bench-neighbours`: what PostgreSQL and an HTTP service notice of eight hostile executions beside them.

Each round measures, in random order, the two services alone and beside each group of attackers; both serve a fixed number of
requests a second, and each latency counts from when its request was due. A bar compares medians over the rounds. What attackers of
the disk do is only reported where nothing limits transfers: on cgroup v1, and without disk limits in the settings.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
from contextlib import closing, nullcontext
from pathlib import Path

from forge_orchestration.sandbox.cgroups.find import expected_site
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.bench import Table, _forge
from forge_orchestration_tests.neighbours.attackers import ATTACKERS, GROUPS, Attack
from forge_orchestration_tests.neighbours.http_service import HttpService
from forge_orchestration_tests.neighbours.postgres import Postgres, PostgresFailed

ROUNDS = 5
SECONDS = 15
_ALONE = "alone"
_RATE = 100  # requests a second for each service: a host that works, and is not full
_SKIP_S = 1.0
_MOST = {"p50": 1.5, "p99": 4.0}


class Samples:
    """Latencies in ms: by group of attackers and service, one p50 and one p99 a round."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str, str], list[float]] = {}
        self.failed = 0
        self.served = 0

    def add(self, group: str, service: str, latencies_s: list[float], failed: int) -> None:
        """One service's measurement."""
        ordered = sorted(latencies_s)
        for name, share in (("p50", 0.50), ("p99", 0.99)):
            at = min(len(ordered) - 1, int(share * len(ordered)))
            self._values.setdefault((group, service, name), []).append(ordered[at] * 1000)
        self.failed += failed
        self.served += len(ordered)

    def median(self, group: str, service: str, name: str) -> float:
        """Over the rounds."""
        return statistics.median(self._values[group, service, name])

    def spread(self, group: str, service: str, name: str) -> str:
        """Lowest and highest of the rounds."""
        values = self._values[group, service, name]
        return f"{min(values):.1f} to {max(values):.1f}"


def main() -> int:
    """Print the tables; exit status 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--cpus", type=float, default=1.0, help="limit of each attacker")
    parser.add_argument("--memory-mib", type=int, default=256, help="limit of each attacker")
    parser.add_argument("--settings", type=Path, help="a settings.toml to measure with; default: none")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that nothing is left running
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    home = Path(tempfile.mkdtemp(prefix="forge-bench-", dir="/var/tmp"))
    os.environ["FORGE_HOME"] = str(home)
    table = Table()
    try:
        if arguments.settings:
            shutil.copyfile(arguments.settings, home / "settings.toml")
        _forge("runtimes", "build", "forge-python")
        with Postgres() as postgres, HttpService() as service:
            samples = _measure(arguments, postgres, service)
            _show(samples, arguments, table)
            found = postgres.check()
        table.bar("requests that failed", samples.failed, 0)
        table.bar(f"faults that pg_amcheck finds{': ' + found if found else ''}", len(found.splitlines()), 0)
        with closing(sqlite3.connect(home / "store.db")) as store:
            answers = [row[0] for row in store.execute("PRAGMA integrity_check")]
        table.bar("faults that SQLite finds in the store", len([answer for answer in answers if answer != "ok"]), 0)
    except PostgresFailed as error:
        print(f"bench-neighbours: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return 1 if table.failed else 0


def _measure(arguments: argparse.Namespace, postgres: Postgres, service: HttpService) -> Samples:
    samples = Samples()
    for number in range(1, arguments.rounds + 1):
        order = [_ALONE, *arguments.groups]
        random.shuffle(order)
        for group in order:
            postgres.settle()
            os.sync()
            attack = Attack(group, arguments.memory_mib * 2**20, arguments.cpus) if group != _ALONE else nullcontext()
            with attack as attackers:
                transactions = postgres.start_load(_RATE, arguments.seconds + _SKIP_S)
                requests = service.start_load(_RATE, arguments.seconds + _SKIP_S, _SKIP_S)
                samples.add(group, "HTTP", *service.latencies_s(requests))
                samples.add(group, "PostgreSQL", *postgres.latencies_s(transactions, _SKIP_S))
            print(f"  round {number}, {group}: {attackers.told() if attackers else 'no attackers'}", flush=True)
    return samples


def _show(samples: Samples, arguments: argparse.Namespace, table: Table) -> None:
    limits = f"{arguments.cpus:g} cores and {arguments.memory_mib} MiB each"
    print(
        f"\n{ATTACKERS} attackers with {limits}; {_RATE} requests a second, {arguments.seconds:g} s, medians of {arguments.rounds} rounds"
    )
    print(f"  {'':<24} {'p50 ms':>8} {'(lowest to highest)':>20} {'p99 ms':>9} {'(lowest to highest)':>22}")
    for service in ("PostgreSQL", "HTTP"):
        for group in (_ALONE, *arguments.groups):
            p50, p99 = (samples.median(group, service, name) for name in _MOST)
            ranges = [samples.spread(group, service, name) for name in _MOST]
            print(f"  {service + ', ' + group:<24} {p50:8.2f} {ranges[0]:>20} {p99:9.2f} {ranges[1]:>22}")
    print(f"  {samples.served} requests were served\n")
    limited = _transfers_are_limited()
    for group in arguments.groups:
        for service in ("PostgreSQL", "HTTP"):
            for name, most in _MOST.items():
                ratio = samples.median(group, service, name) / samples.median(_ALONE, service, name)
                what = f"{service}, {name} beside {group} attackers / alone"
                if group == "disk" and not limited:
                    print(f"         {what}: {ratio:.2f} (no bar: nothing limits transfers here)")
                else:
                    table.bar(what, ratio, most)


def _transfers_are_limited() -> bool:
    """Whether the deployment limits disk transfers, which only cgroup v2 can (`io.max`)."""
    neighbours = load_settings().neighbours
    return expected_site().version == 2 and (neighbours.write_bytes_per_s is not None or neighbours.writes_per_s is not None)


if __name__ == "__main__":
    sys.exit(main())
