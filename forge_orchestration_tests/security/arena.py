"""Runs an attack in a real sandbox, beside a peaceful neighbour, and looks afterwards at everything that it must not have touched.

    outcome = arena.run("read/host_files", limits={"memory": "64MiB"}, depth=7)   # more arguments are what the attack is told
    outcome.assert_refused("ENOENT", "EACCES")
    assert outcome.record.end_reason == "completed"

An attack is a program in `attacks/`. What it says of itself (see `attacks/evidence.py`) is only evidence that it was tried:
whether it had an effect is seen from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

import forge_orchestration
from forge_orchestration import ExecutionRecord
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.messages import Message
from forge_orchestration.model.sections import SupervisionSettings
from forge_orchestration.sandbox import subordinate
from forge_orchestration.sandbox.identity import claims_folder, uid_in_use
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration_tests.conftest import PATIENCE, wait_until
from forge_orchestration_tests.security.canaries import Canaries, free_port

AS_ROOT = os.geteuid() == 0
# executions have a uid that is nobody else's
OWN_UIDS = AS_ROOT or not subordinate.missing()
ATTACKS = Path(__file__).with_name("attacks")
SUSPECT_AFTER = SupervisionSettings().suspect_after
LIMITS = {"memory": "64MiB", "pids": "32", "scratch": "8MiB", "wall_time": f"{60 * PATIENCE:g}s", "grace": "1s", "log": "1MiB"}


class StillOpen(AssertionError):
    """An attack had an effect. What is known to be open is marked with this, so that nothing else hides behind the mark."""


class Attempt(msgspec.Struct, frozen=True):
    """One call of an attack: what it was for, the error that refused it (None: nothing did), and what it returned."""

    attempt: str
    error: str | None = None
    got: str = ""


class Outcome:
    """What came of one attack.

    Attributes:
        record: Of its execution.
        attempts: In order; `said` is every line, `facts` all of them in one, `finished` whether it got to its end.
    """

    def __init__(self, record: ExecutionRecord) -> None:
        self.record = record
        self.logs = {name: Path(log.path).read_bytes() for name, log in record.logs.items()}
        self.said = list(_spoken(b"\n".join(self.logs.values())))
        self.attempts: list[Attempt] = []
        self.facts: dict[str, object] = {}
        self.finished = False
        for said in self.said:
            if "attempt" in said:
                self.attempts.append(msgspec.convert(said, Attempt))
            self.finished |= "done" in said
            self.facts |= said

    def __repr__(self) -> str:
        return f"<{self.record.end_reason}: {self.record.message} {self.attempts} {self.facts} {self.logs['stderr'][-2000:]!r}>"

    def errors(self) -> dict[str, str | None]:
        """The error by attempt; None for one that was not refused."""
        return {one.attempt: one.error for one in self.attempts}

    def assert_refused(self, *errors: str, but: dict[str, str | None] | None = None) -> None:
        """It made attempts, got to its end, and each was refused with one of `errors`; or as `but` says, by its name."""
        assert self.finished and self.attempts, self
        expected = but or {}
        assert not expected.keys() - self.errors().keys(), self
        for one in self.attempts:
            if one.attempt in expected:
                assert one.error == expected[one.attempt], (one, self)
            else:
                assert one.error in errors, (one, self)

    def assert_counted(self, *names: str) -> None:
        """The system calls that the filter has refused it are those of `names`, and it is `suspect` if they were many."""
        counts = self.record.violations
        assert isinstance(counts, dict) and counts.keys() == set(names) and 0 not in counts.values(), (counts, self)
        assert self.record.suspect is (sum(counts.values()) >= SUSPECT_AFTER), (counts, self)

    def assert_ended(self, reason: str) -> None:
        """The record says so, in a sentence."""
        assert self.record.end_reason == reason, self
        assert self.record.message and len(self.record.message) < 1000 and self.record.message.isprintable(), self


class Arena:
    """Canaries, a neighbour and an execution that has ended, for as many attacks as a test wants.

    Args:
        home: `FORGE_HOME`, with `forge-python` built.
        folder: A new folder beneath an allowed input root.

    Attributes:
        told: What the last attack was told.
        started: The first record of the attack that runs now, if somebody listens to it.
    """

    def __init__(self, home: Path, folder: Path) -> None:
        folder.mkdir(mode=0o755)
        self.home = home
        self.told: dict[str, object] = {}
        self.started: ExecutionRecord | None = None
        self._programs = folder / "attacks"
        shutil.copytree(ATTACKS, self._programs, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (self._programs, *self._programs.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        self.canaries = Canaries(folder / "canaries")
        try:
            self.victim = self._run_victim()
            self._victim_files = _contents(Path(self.victim.folder))
            self._runtimes = _stats(home)
            self.neighbour = Neighbour(self._programs / "neighbour.py", folder / "neighbour inputs", self.canaries.token)
        except BaseException:
            self.canaries.remove()
            raise

    def program(self, attack: str) -> Path:
        """Where an attack's file is."""
        return self._programs / f"{attack}.py"

    def inputs(self, attack: str) -> dict[str, str]:
        """What an attack has as inputs; its own file is `attack.py`."""
        return {
            "attack.py": str(self.program(attack)), "evidence.py": str(self._programs / "evidence.py"),
            "data": str(self.canaries.data), "folder": str(self.canaries.inputs),
        }  # fmt: skip

    def targets(self) -> dict[str, object]:
        """What an attack is told."""
        return {
            **self.canaries.targets(), "home": str(self.home), "victim": self.victim.folder, **self.neighbour.targets(self.home),
        }  # fmt: skip

    def run(
        self,
        attack: str,
        *,
        limits: dict[str, str] | None = None,
        env: dict[str, str] | None = None,
        outputs: dict[str, str] | None = None,
        on_fact: Callable[[dict[str, object]], None] | None = None,
        command: list[str] | None = None,
        tidy: Callable[[], object] | None = None,
        **told: object,
    ) -> Outcome:
        """Run it to its end and look around: whatever it was, host, neighbour and the ended execution are as they were.

        Args:
            limits: Other ones than `LIMITS`.
            on_fact: Called, while it runs, with each line that it says.
            tidy: Takes away, when it has ended, what the test itself has put among the canaries.
            told: Added to `TARGETS` of the attack.
        """
        beats = self.neighbour.beats()
        self.told = {**self.targets(), **told}
        try:
            record = forge_orchestration.run(
                command or ["python", "/forge/inputs/attack.py"],
                inputs=self.inputs(attack),
                params=self.told,
                limits={**LIMITS, **(limits or {})},
                env=env,
                outputs=outputs or {},
                listener=_Listener(self, on_fact) if on_fact else None,
            )
        finally:
            if tidy:
                tidy()
        self.look_around(record, beats)
        return Outcome(record)

    def outcome(self, record: ExecutionRecord) -> Outcome:
        """What an attack said that was started in another way."""
        return Outcome(record)

    def look_around(self, record: ExecutionRecord, beats: int) -> None:
        """Everything that no execution may touch, after the one of `record`."""
        assert record.status.is_final and record.isolation is not None, record.message
        assert isinstance(record.violations, dict), (record.violations, record.end_reason, record.message)
        # where the supervisor would say that it has failed itself
        closed(not Path(record.folder, "supervisor.log").exists(), record.message)
        self._assert_cleaned_up(record)
        self._assert_nothing_leaked(record)
        self.canaries.assert_untouched()
        assert _contents(Path(self.victim.folder)) == self._victim_files
        assert _stats(self.home) == self._runtimes
        self.neighbour.assert_well(beats)

    def close(self) -> None:
        """End the neighbour, which must have ended well, and remove what was made on the host."""
        try:
            self.neighbour.stop()
        finally:
            self.canaries.remove()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._programs.parent)

    def _run_victim(self) -> ExecutionRecord:
        script = 'echo "$1"; echo "$1" > $FORGE_OUTPUTS/result.txt'
        record = forge_orchestration.run(["sh", "-c", script, "victim", self.canaries.token], limits=LIMITS)
        assert record.succeeded, record.message
        return record

    def _assert_cleaned_up(self, record: ExecutionRecord) -> None:
        cleanup = record.cleanup
        assert cleanup.finished_at is not None and cleanup.cgroup_removed, cleanup
        for name in ("memory_bytes", "cpus", "pids"):
            group = Path(record.enforced[name].source).parent
            assert record.execution_id in group.name and not group.exists(), group
        assert record.execution_id not in os.listdir(self.home / "scratch")
        if not os.geteuid():  # its image has no name, and its mount was its supervisor's alone
            assert os.listdir(self.home / "scratch" / "workspace") == []
        supervisor = read_supervisor(ExecutionFolder(Path(record.folder).parent, record.execution_id))
        assert supervisor is not None and supervisor.wait(5), "its supervisor is still there"
        assert not Path(record.folder, "messages.fifo").exists()
        assert record.isolation is not None
        assert record.isolation.mode == ("own_uid" if AS_ROOT else "subordinate_uid" if OWN_UIDS else "user_namespace")
        if AS_ROOT:
            assert set(record.isolation.protections.values()) == {"on"}
        if OWN_UIDS:
            claim = claims_folder() / str(record.isolation.uid)
            # another execution of this host may have it by now; its claim names it
            assert not uid_in_use(record.isolation.uid) or claim.read_text() not in ("", record.execution_id)

    def _assert_nothing_leaked(self, record: ExecutionRecord) -> None:
        token = self.canaries.token.encode()
        for folder, _, files in os.walk(record.folder):
            for name in files:
                path = Path(folder, name)
                if name != "plan.json" and path.is_file() and not path.is_symlink():
                    assert token not in path.read_bytes(), path


class Neighbour:
    """An execution that runs beside the attacks, and says with each beat that nothing of its own has changed."""

    def __init__(self, program: Path, inputs: Path, token: str) -> None:
        inputs.mkdir()
        inputs.chmod(0o755)
        self._inputs = inputs
        self._port, self._abstract = free_port(), f"forge-neighbour-{token[:8]}"
        self._started = threading.Event()
        self.record: ExecutionRecord | None = None
        environment = {"NEIGHBOUR_TOKEN": token, "NEIGHBOUR_PORT": str(self._port), "NEIGHBOUR_ABSTRACT": self._abstract}
        # one that beats without a rest takes an emulated processor for itself
        environment["NEIGHBOUR_PAUSE_S"] = str(0.02 * PATIENCE)
        self._thread = threading.Thread(target=self._run, args=(program, environment), daemon=True)
        self._thread.start()
        assert self._started.wait(60), "the neighbour did not start"
        wait_until("the neighbour's first beats", lambda: self.beats() > 2)

    def targets(self, home: Path) -> dict[str, object]:
        """What an attack is told of it."""
        assert self.record is not None
        folder = Path(self.record.folder)
        supervisor = read_supervisor(ExecutionFolder(folder.parent, folder.name))
        assert supervisor is not None
        group = Path(forge_record(folder).enforced["pids"].source).parent
        # started by root, all have the same mount point, each in a mount namespace of its own
        scratch = self.record.execution_id if os.geteuid() else "workspace"
        return {
            "neighbour": str(folder), "neighbour_scratch": str(home / "scratch" / scratch),
            "neighbour_port": self._port, "neighbour_abstract": self._abstract, "supervisor_pid": supervisor.pid,
            "neighbour_pids": [int(pid) for pid in (group / "cgroup.procs").read_text().split()],
        }  # fmt: skip

    def beats(self) -> int:
        """How often its heart has beaten."""
        assert self.record is not None
        try:
            words = Path(self.record.logs["stdout"].path).read_bytes()[-200:].split(b"\n")[:-1]
        except FileNotFoundError:
            return 0
        return int(words[-1]) if words and words[-1].isdigit() else 0

    def assert_well(self, since: int) -> None:
        """It is alive, and its heart has beaten since."""
        assert self._thread.is_alive(), self.record
        wait_until("a beat of the neighbour", lambda: self.beats() > since or not self._thread.is_alive())
        assert self._thread.is_alive(), self.record

    def stop(self) -> None:
        """Let it end; it must have found nothing changed."""
        (self._inputs / "stop").touch()
        self._thread.join(60)
        assert self.record is not None and self.record.end_reason == "completed", self.record
        assert Path(self.record.logs["stdout"].path).read_text().endswith("in peace\n")

    def _run(self, program: Path, environment: dict[str, str]) -> None:
        self.record = forge_orchestration.run(
            ["python", "/forge/inputs/neighbour.py"], inputs={"neighbour.py": str(program), "folder": str(self._inputs)},
            env=environment, limits={**LIMITS, "wall_time": f"{PATIENCE:g}h"}, listener=self,
        )  # fmt: skip

    def on_started(self, record: ExecutionRecord) -> None:
        self.record = record
        self._started.set()

    def on_log(self, stream: str, data: bytes) -> None:
        """Read from the file instead."""

    def on_message(self, message: Message) -> None:
        """It sends none."""


class _Listener:
    """Hands on what an attack says while it runs."""

    def __init__(self, arena: Arena, on_fact: Callable[[dict[str, object]], None]) -> None:
        self._arena, self._on_fact = arena, on_fact

    def on_started(self, record: ExecutionRecord) -> None:
        self._arena.started = record

    def on_log(self, stream: str, data: bytes) -> None:
        for said in _spoken(data):
            self._on_fact(said)

    def on_message(self, message: Message) -> None:
        """Of no interest."""


def forge_record(folder: Path) -> ExecutionRecord:
    """The record in an execution's folder."""
    return msgspec.json.decode((folder / "record.json").read_bytes(), type=ExecutionRecord)


def closed(condition: object, what: object) -> None:
    """Fail, as one of the known holes does, unless `condition` holds."""
    if not condition:
        raise StillOpen(what)


def _spoken(data: bytes) -> Iterator[dict[str, object]]:
    for line in data.splitlines():
        if line.startswith(b'{"'):
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _stats(home: Path) -> dict[str, tuple[int, ...]]:
    """Of every file of every runtime; what Forge notes beside them changes."""
    seen = {str(path): path.lstat() for prefix in (home / "runtimes").glob("*/*/prefix") for path in prefix.rglob("*")}
    assert seen
    return {path: (one.st_mode, one.st_uid, one.st_size, one.st_mtime_ns, one.st_ino) for path, one in seen.items()}
