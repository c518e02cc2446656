"""One round of faults, drawn from a seed: controllers at work, and kills at moments of their executions' lives.

The seed decides what runs, who is killed and when; what the kernel makes of that, it does not. So a round that failed is
replayed by its seed, several times if need be: `FORGE_FAULT_SEED=123 pytest …/faults/test_random_kills.py -k seed`.
"""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forge_orchestration.engine import Engine
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.operations.reconcile import reconcile
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import PATIENCE, Forge, leftovers, wait_until
from forge_orchestration_tests.faults import victims

CONTENT, OUTPUTS = b"a" * 300_000, 30
# what it does, and what it ends as when nobody disturbs it; None: it goes on until it is ended
WORK: dict[str, tuple[str, EndReason | None]] = {
    "quick": ("true", EndReason.COMPLETED),
    "failing": ("exit 3", EndReason.NONZERO_EXIT),
    "patient": ("exec sleep 300", None),
    "deaf": ("trap '' TERM; while :; do sleep 0.05; done", None),
    "tree": ("i=0; while [ $i -lt 12 ]; do setsid sleep 300 & i=$((i+1)); done; wait", None),
    "talking": (
        """i=0; while [ $i -lt 300 ]; do echo line $i; echo '{"type":"progress","fraction":0.5}' >>$FORGE_MESSAGES; i=$((i+1)); done""",
        EndReason.COMPLETED,
    ),
    # each output is whole when it gets its name, so half of one is not its doing
    "writing": (
        f"cd $FORGE_OUTPUTS; i=0; while [ $i -lt {OUTPUTS} ]; do head -c {len(CONTENT)} /dev/zero | tr '\\0' a >part; "
        f"[ $(stat -c %s part) = {len(CONTENT)} ] || exit 3; mv part $i.txt; i=$((i+1)); done",
        EndReason.COMPLETED,
    ),
}
# of an execution: "asked" is before it exists, "ended" when its record is final and its supervisor may still be there
_BEFORE, _DURING, _AFTER = ("asked", "folder", "record", "plan"), ("supervisor", "group", "running"), ("collecting", "ended")
# when there is somebody to kill
MOMENTS = {
    "controller": (*_BEFORE, *_DURING, *_AFTER),
    "spawner": (*_BEFORE, *_DURING, *_AFTER),
    "standby": (*_BEFORE, *_DURING, *_AFTER),
    "supervisor": ("plan", *_DURING, *_DURING, *_AFTER),
    "bubblewrap": _DURING,
    "bubblewrap inside": _DURING,
    "entrant": _DURING,
    "analysis": _DURING,
}
_RANKS = {Status.QUEUED: 0, Status.PREPARING: 1, Status.RUNNING: 2, Status.COLLECTING: 3}
_REACHED_BY = {"supervisor": 1, "running": 2, "collecting": 3, "ended": 4}
_PATIENCE_S = 4.0 * PATIENCE
_STARTS = 15
"""after which all must be put right"""


@dataclass
class Controller:
    """A process that runs `count` executions of one kind of work at once."""

    work: str
    count: int
    process: subprocess.Popen[bytes] | None = None
    canceled: bool = False

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, log: Path) -> None:
        """Start it; what it says on stderr goes to `log`."""
        command = ["sh", "-c", WORK[self.work][0]]
        if self.count == 1:
            limits = ["--memory", "64MiB", "--pids", "40", "--scratch", "32MiB", "--grace", "300ms"]
            words = ["-m", "forge_orchestration.cli.main", "exec", *limits, "--json", "--", *command]
        else:
            words = ["-m", "forge_orchestration_tests.faults.controller", str(self.count), "300ms", *command]
        with log.open("ab") as file:
            null = subprocess.DEVNULL
            self.process = subprocess.Popen([sys.executable, "-X", "faulthandler", *words], stdin=null, stdout=null, stderr=file)


@dataclass
class Kill:
    """`after_s` after the execution that begins as number `nth` has reached `moment`, a process of kind `victim` is killed."""

    victim: str
    moment: str
    after_s: float
    nth: int
    pick: float
    due: float | None = None
    done: bool = False

    def __str__(self) -> str:
        return f"{self.victim} of {self.nth} {self.after_s * 1000:.1f} ms after {self.moment}"


@dataclass
class Hit:
    """A kill that found a process: of which controller and execution, and how far that was."""

    kill: Kill
    controller: int
    execution_id: str | None
    status: Status | None

    def __str__(self) -> str:
        return f"{self.kill.victim} ({self.status or 'before its record'})"


class Round:
    """Drawn when it is made; then `play` it."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home = home
        chance = random.Random(seed)
        self.controllers = [
            Controller(work=chance.choice(list(WORK)), count=chance.choice((1, 1, 3))) for _ in range(chance.choice((1, 2, 3)))
        ]
        total = sum(one.count for one in self.controllers)
        self.kills = [_draw(chance, total) for _ in range(chance.choice((2, 3, 4, 5)))]
        self.gc_beside = chance.random() < 0.4
        self.by_next_start = chance.random() < 0.5
        self.before = Forge(home).executions()
        self.log = home / "controllers.log"
        self.log.write_bytes(b"")
        self.hits: list[Hit] = []
        work = ", ".join(f"{one.count} {one.work}" for one in self.controllers)
        beside, then = "; gc beside" if self.gc_beside else "", "the next start" if self.by_next_start else "gc"
        self._told = f"seed {seed}: {work}; kill {'; '.join(map(str, self.kills))}{beside}; then {then}"

    def __str__(self) -> str:
        return self._told

    def executions(self) -> set[str]:
        """Those of this round."""
        return Forge(self.home).executions() - self.before

    def play(self) -> None:
        """Run it until every controller and supervisor has ended."""
        for controller in self.controllers:
            controller.start(self.log)
        begun = time.monotonic()
        with self._gc_meanwhile():
            order: list[str] = []
            while not all(kill.done for kill in self.kills) and self._goes_on(begun):
                order += sorted(self.executions() - set(order))
                for kill in self.kills:
                    if not kill.done:
                        self._try(kill, order, begun)
                time.sleep(0.0003)  # between two looks, so that those that are looked at get on
            for controller in self.controllers:
                if WORK[controller.work][1] is None and controller.lives:
                    assert controller.process is not None
                    controller.canceled = True
                    controller.process.send_signal(signal.SIGTERM)
            for controller in self.controllers:
                assert controller.process is not None
                controller.process.wait(60)
            wait_until("the end of spawners and supervisors", lambda: not any(map(self._is_supervised, self.executions())), 60)

    def reconcile(self, forge: Forge) -> None:
        """By `forge gc`, or by nothing but the next start of a controller, and where that is in a hurry by the one after it."""
        if self.by_next_start:
            for _ in range(_STARTS):
                done = forge("exec", "--memory", "64MiB", "--", "true")
                self.before.add(max(self.executions()))
                # none waits longer than two seconds for what it puts right beside its own execution
                if done.returncode or self._is_clean():
                    break
        else:
            done = forge("gc")
            print("  gc:", " ".join(done.stdout.split()), flush=True)
        assert done.returncode == 0, done.stderr

    def _is_clean(self) -> bool:
        """The command's own spawner may outlive it by some milliseconds: it ends as soon as it finds its controller gone."""
        deadline = time.monotonic() + PATIENCE
        while left := leftovers(self.home):
            if time.monotonic() > deadline:
                print("  left for the next start:", *left, sep="\n    ", flush=True)
                return False
            time.sleep(0.01)
        return True

    def _goes_on(self, begun: float) -> bool:
        return time.monotonic() < begun + _PATIENCE_S and any(one.lives for one in self.controllers)

    def _try(self, kill: Kill, order: list[str], begun: float) -> None:
        execution_id = order[kill.nth] if kill.nth < len(order) else None
        if kill.due is None and (kill.moment == "asked" or (execution_id and self._has_reached(execution_id, kill.moment))):
            kill.due = (begun if kill.moment == "asked" else time.monotonic()) + kill.after_s
        if kill.due is None or time.monotonic() < kill.due:
            return
        kill.done = True
        controller = victims.controller_of(self.home, execution_id) if execution_id else None
        living = [one.process.pid for one in self.controllers if one.process and one.lives]
        if controller is None and living:
            controller = living[int(kill.pick * len(living))]
        found = victims.find(self.home, kill.victim, controller, execution_id) if controller is not None else []
        if controller is not None and found:
            status = self._status(execution_id) if execution_id else None
            if victims.kill(found[int(kill.pick * len(found))]):
                self.hits.append(Hit(kill, controller, execution_id, status))

    @contextlib.contextmanager
    def _gc_meanwhile(self) -> Iterator[None]:
        """`forge gc` again and again, beside executions that live."""
        stop, problems = threading.Event(), []

        def run() -> None:
            while self.gc_beside and not stop.wait(0.01):
                problems.extend(reconcile(Engine(load_settings(self.home))).problems)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)
        assert problems == []

    def _is_supervised(self, execution_id: str) -> bool:
        """A process that is just ending has no environment any more; one that has just begun is in no record yet."""
        supervisor = read_supervisor(ExecutionFolder(self.home / "executions", execution_id))
        return bool(victims.of_home(self.home)) or (supervisor is not None and supervisor.is_alive)

    def _status(self, execution_id: str) -> Status | None:
        with contextlib.suppress(OSError):
            text = (self.home / "executions" / execution_id / "record.json").read_bytes()
            if found := re.search(rb'"status": "(\w+)"', text):
                return Status(found[1].decode())
        return None

    def _has_reached(self, execution_id: str, moment: str) -> bool:
        if moment == "folder":
            return True
        if moment == "group":
            return bool(victims.members(self.home, execution_id))
        if moment in ("record", "plan"):
            return (self.home / "executions" / execution_id / f"{moment}.json").exists()
        status = self._status(execution_id)
        return status is not None and _RANKS.get(status, 4) >= _REACHED_BY[moment]


def _draw(chance: random.Random, executions: int) -> Kill:
    victim = chance.choice(list(MOMENTS))
    moment = chance.choice(MOMENTS[victim])
    soon, later, long = chance.expovariate(1 / 0.003), chance.expovariate(1 / 0.03), chance.uniform(0, 0.3)
    after_s = long if moment == "asked" else chance.choice((0.0, soon, soon, later))
    return Kill(victim=victim, moment=moment, after_s=after_s, nth=chance.randrange(executions), pick=chance.random())
