"""An analysis in stages, one of which checkpoints, killed at random moments until it has succeeded in spite of that.

Afterwards the outputs are those of one that nobody has killed, no stage that had finished has run again, and of the one that
checkpoints nothing was done twice but what it was at when it was killed.
"""

from __future__ import annotations

import collections
import json
import random
import time
from pathlib import Path

import pytest

from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration_tests.conftest import PATIENCE, Forge
from forge_orchestration_tests.faults import victims

SAMPLE = 3
KILLS = 50
ITEMS, ITEM_S = 8, 0.25 * PATIENCE
KINDS = ("controller", "supervisor", "analysis")
DEFINITION = """\
runtime: forge-python
deterministic: true
stages:
  draw: {command: [python, draw.py], files: [draw.py], outputs: {numbers: numbers.txt}}
  work:
    command: [python, work.py]
    files: [work.py]
    inputs: {numbers: {path: "stage://draw/numbers"}}
    outputs: {sums: sums.txt}
  tell:
    command: [python, tell.py]
    files: [tell.py]
    inputs: {sums: {path: "stage://work/sums"}}
    outputs: {told: told.txt}
"""
SCRIPTS = {
    "draw.py": "import os, random, time\nrandom.seed(1)\ntime.sleep(0.3)\n"
    f"open(os.environ['FORGE_OUTPUTS'] + '/numbers.txt', 'w').write(' '.join(str(random.random()) for _ in range({ITEMS})))\n",
    "work.py": f"""\
import os, time
import forge_checkpoint
numbers = open(os.environ["FORGE_INPUTS"] + "/numbers").read().split()
with forge_checkpoint.open() as cp:
    sums = cp.state or [0.0]
    for number in cp.remaining(numbers):
        time.sleep({ITEM_S})
        sums = [*sums, sums[-1] + float(number)]
        cp.save(sums)
        print("did", cp.done)
open(os.environ["FORGE_OUTPUTS"] + "/sums.txt", "w").write(repr(sums))
""",
    "tell.py": "import os, time\ntime.sleep(0.3)\n"
    "open(os.environ['FORGE_OUTPUTS'] + '/told.txt', 'w').write(open(os.environ['FORGE_INPUTS'] + '/sums').read().upper())\n",
}


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text)
    (folder / "analysis.yaml").write_text(DEFINITION)
    return folder


def records(forge: Forge) -> list[ExecutionRecord]:
    found = []
    for execution_id in sorted(forge.executions()):
        if (forge.home / "executions" / execution_id / "record.json").exists():
            found.append(forge.read_record(execution_id))
    return found


def digests(forge: Forge) -> dict[str, str]:
    """Of every output, by its name, as the last execution of each stage has it."""
    return {output.name: output.sha256 for record in records(forge) if record.succeeded for output in record.outputs}


def killed_until_it_succeeds(forge: Forge, analysis: Path, draw: random.Random, kills: int) -> list[str]:
    """Run it, kill something of it at a random moment, run it again; returns what was hit."""
    hits: list[str] = []
    while True:
        with forge.started("run", analysis) as process:
            while len(hits) < kills and process.poll() is None:
                time.sleep(draw.uniform(0.2, 2.5) * PATIENCE)
                kind = draw.choice(KINDS)
                running = [one.execution_id for one in records(forge) if not one.status.is_final]
                found = victims.find(forge.home, kind, process.pid, running[-1] if running else None)
                if any([victims.kill(pid) for pid in found] if process.poll() is None else []):
                    hits.append(kind)
                    break
            process.communicate(timeout=120 * PATIENCE)
            if process.returncode == 0:
                return hits


def check(forge: Forge, wanted: dict[str, str], hits: list[str]) -> None:
    assert digests(forge) == wanted, "byte by byte what nobody has killed makes"
    ran = collections.Counter(one.analysis for one in records(forge) if one.succeeded and not one.cache.hit)
    assert max(ran.values()) == 1, f"a stage that had finished has run again: {ran}"
    done: collections.Counter[str] = collections.Counter()
    for record in records(forge):
        log = Path(record.folder, "stdout.log")
        done.update(
            line
            for line in (log.read_text() if log.exists() and not record.cache.hit else "").splitlines()
            if line.startswith("did ")
        )
    assert set(done) == {f"did {number}" for number in range(1, ITEMS + 1)}
    repeated = sum(count - 1 for count in done.values())
    # what is saved in the moment in which the supervisor goes may not be out yet
    assert repeated <= hits.count("supervisor"), (done, hits)
    assert json.loads(forge("gc", "--json").stdout)["problems"] == []
    assert not list(forge.home.glob("checkpoints/*"))


def play(forge: Forge, tmp_path: Path, seed: int, kills: int, wanted: dict[str, str]) -> list[str]:
    print(f"seed {seed}", flush=True)
    analysis = write(tmp_path / str(seed) / "sums")
    for path in analysis.glob("*.py"):  # of which no other round has a result
        path.write_text(f"# {seed}\n{path.read_text()}")
    before = set(forge.executions())
    hits = killed_until_it_succeeds(forge, analysis, random.Random(seed), kills)
    print(f"  hit: {', '.join(hits) or 'nobody'}", flush=True)
    home = Forge(forge.home)
    home.executions = lambda: forge.executions() - before  # type: ignore[method-assign]
    check(home, wanted, hits)
    return hits


@pytest.fixture
def wanted(other_forge: Forge, tmp_path: Path) -> dict[str, str]:
    done = other_forge("run", write(tmp_path / "whole" / "sums"))
    assert done.returncode == 0, done.stderr
    return digests(other_forge)


def test_a_sample(other_forge: Forge, tmp_path: Path, wanted: dict[str, str]) -> None:
    hits: list[str] = []
    while not hits:  # between two stages there may be nobody to hit, and then it is done
        hits = play(other_forge, tmp_path, random.SystemRandom().randrange(1 << 32), SAMPLE, wanted)


@pytest.mark.slow
@pytest.mark.timeout(1800 * PATIENCE)
def test_fifty_kills(other_forge: Forge, tmp_path: Path, wanted: dict[str, str]) -> None:
    hits = 0
    while hits < KILLS:
        hits += len(play(other_forge, tmp_path, random.SystemRandom().randrange(1 << 32), 5, wanted))
    print(f"{hits} kills")
