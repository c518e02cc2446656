"""Guarded executions, as a user starts them: real sandboxes, and a database or a file damaged by somebody else while they run."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import jsonschema
import pytest

from forge_orchestration.engine import Engine
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.operations.reconcile import reconcile
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.cli.conftest import SMALL
from forge_orchestration_tests.conftest import Forge, wait_until
from forge_orchestration_tests.integration.postgres_server import Server

WAIT = "echo ready; while [ ! -e $FORGE_INPUTS/gate/open ]; do sleep 0.05; done"


class Place:
    """A guarded database, a guarded folder, and a gate for which executions wait."""

    def __init__(self, folder: Path, forge: Forge) -> None:
        self.forge = forge
        self.database, self.files, self.gate = folder / "lab.db", folder / "reference", folder / "gate"
        for one in (self.files, self.gate):
            one.mkdir(mode=0o755)
        (self.files / "genome.fa").write_text("ACGT" * 1000)
        with closing(sqlite3.connect(self.database)) as made:
            made.execute("CREATE TABLE samples (id INTEGER PRIMARY KEY, name TEXT)")
            made.executemany("INSERT INTO samples VALUES (?, ?)", [(n, f"sample {n}") for n in range(2000)])
            made.commit()
        self.set()

    def set(self, marks: str = "analyses = ['*']", more: str = "") -> None:
        """Write the settings."""
        (self.forge.home / "settings.toml").write_text(
            f"[guard]\n{marks}\npaths = ['{self.files}']\n{more}\n[protected_databases]\nlab = 'sqlite:///{self.database}'\n"
        )

    @contextlib.contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """An execution that runs until the gate is opened."""
        words = words or ("exec", *SMALL, "--input", f"gate={self.gate}", "--", "sh", "-c", WAIT)
        with self.forge.started(*words) as process:
            assert process.stdout is not None
            said = select.select([process.stdout], [], [], 120)[0] and process.stdout.readline()
            if said != "ready\n":
                process.kill()
                pytest.fail(f"it does not run: {self.last().to_json()} {process.communicate(timeout=30)}")
            yield process

    def open(self) -> None:
        (self.gate / "open").touch()

    def damage(self) -> None:
        with open(self.database, "r+b") as file:
            file.seek(4096 * 2)
            file.write(bytes(4096))

    def edit(self) -> None:
        """With the same size and time."""
        path = self.files / "genome.fa"
        facts = path.stat()
        path.write_text("ACGA" + path.read_text()[4:])
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    def last(self) -> ExecutionRecord:
        return self.forge.read_record(max(self.forge.executions()))


@pytest.fixture
def place(other_forge: Forge, tmp_path: Path) -> Place:
    folder = tmp_path / "lab ö"
    folder.mkdir(mode=0o755)
    return Place(folder, other_forge)


def found(record: ExecutionRecord) -> dict[str, str]:
    assert record.guard is not None
    return {Path(finding.target).name: finding.verdict for finding in record.guard.findings}


def test_what_is_left_alone(place: Place) -> None:
    record = place.forge.record("exec", *SMALL, "--", "true")
    guard = record.guard
    assert record.succeeded and guard is not None and guard.findings == []
    assert (guard.databases, guard.files, guard.bytes) == (["lab"], 1, 4000)
    assert guard.before_at + guard.before_s <= record.started_at <= record.ended_at <= guard.after_at
    assert found(place.forge.record("exec", *SMALL, "--", "false")) == {}


def test_what_is_damaged_while_it_runs_is_found_told_and_kept(place: Place) -> None:
    with place.running() as process:
        place.damage()
        place.edit()
        place.open()
        assert process.wait(60) == 0, "the analysis is not to blame"
        said = process.stderr.read() if process.stderr else ""
    record = place.last()
    assert record.succeeded and not record.suspect and found(record) == {"lab": "corrupted", "genome.fa": "changed"}
    assert (
        f"forge: corrupted: lab: {place.database} is corrupt" in said and "has other content, with the same size and time" in said
    )
    assert said.count("look for another program of this host") == 2
    shown = place.forge("executions", "show", "last").stdout
    assert "Guarded" in shown and "corrupted" in shown and "genome.fa" in shown and "1 files (3.9 KiB)" in shown
    schema = json.loads(Path(__file__).parents[2].joinpath("docs/record.schema.json").read_text())
    jsonschema.validate(json.loads(place.forge("executions", "show", "--json", "last").stdout), schema)
    # and the next one is not blamed for it
    record = place.forge.record("exec", *SMALL, "--", "true")
    assert record.succeeded and found(record) == {"lab": "before"}


def test_an_analysis_of_a_marked_group(place: Place, tmp_path: Path) -> None:
    for name, group in (("diagnosis", "ward"), ("sketch", "play")):
        folder = tmp_path / "analyses" / name
        folder.mkdir(parents=True)
        (folder / "analysis.yaml").write_text(
            f"group: {group}\ncommand: [sh, -c, '{WAIT}']\ninputs: {{gate: {{path: '{place.gate}'}}}}\nlimits: {{memory: 64MiB}}\n"
        )
    place.set("groups = ['ward']")
    settings = place.forge.home / "settings.toml"
    settings.write_text(f"analysis_folders = ['{tmp_path}/analyses']\n{settings.read_text()}")
    with place.running("run", "diagnosis") as process:
        (place.files / "genome.fa").unlink()
        (place.files / "genome.fa").symlink_to("/etc/hostname")
        place.open()
        out, _ = process.communicate(timeout=60)
    assert found(place.last()) == {"genome.fa": "changed"}
    line = next(line for line in out.splitlines() if "genome.fa" in line)
    assert line.split()[0] == "changed" and "it was a file, and is a link to /etc/hostname" in line
    assert place.forge.record("run", "sketch").guard is None
    lines = {result["name"]: result for result in json.loads(place.forge("doctor", "--json").stdout)}
    assert lines["guard"]["passed"] and lines["guard"]["finding"].endswith("are looked at around diagnosis")


def test_of_two_at_once_neither_is_blamed(place: Place) -> None:
    with place.running() as one, place.running() as two:
        place.damage()
        place.edit()
        place.open()
        assert one.wait(60) == two.wait(60) == 0
    records = [place.forge.read_record(name) for name in sorted(place.forge.executions())]
    for record, other in zip(records, reversed(records), strict=True):
        assert found(record) == {"lab": "suspect", "genome.fa": "suspect"} and record.suspect and record.guard is not None
        assert {tuple(finding.others) for finding in record.guard.findings} == {(other.execution_id,)}
        assert all(other.execution_id in finding.what for finding in record.guard.findings)


def test_one_that_is_not_guarded_counts_as_having_been_there(place: Place) -> None:
    with place.running() as guarded:
        place.set("analyses = ['nobody']")
        other = place.forge.record("exec", *SMALL, "--", "true")
        place.edit()
        place.open()
        assert guarded.wait(60) == 0
    record = place.forge.read_record(min(place.forge.executions()))
    assert other.guard is None and record.guard is not None
    assert [(one.verdict, one.others) for one in record.guard.findings] == [("suspect", [other.execution_id])]


def test_one_that_is_canceled_is_looked_at(place: Place) -> None:
    with place.running() as process:
        place.damage()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 15
    record = place.last()
    assert record.status is Status.CANCELED and found(record) == {"lab": "corrupted"}


def test_one_whose_supervisor_is_killed_is_looked_at(place: Place) -> None:
    with place.running() as process:
        place.edit()
        os.kill(int(str(place.last().native_id).split(":", maxsplit=1)[0]), signal.SIGKILL)
        assert process.wait(60) == 5
    record = place.last()
    assert record.end_reason is EndReason.EXECUTOR_ERROR and found(record) == {"genome.fa": "changed"}


def test_what_cannot_be_looked_at_before_refuses_it_or_is_noted(place: Place) -> None:
    (place.files / "genome.fa").unlink()
    place.files.rmdir()
    done = place.forge("exec", *SMALL, "--", "touch", "/forge/outputs/ran")
    assert done.returncode == 6 and f"nothing was started: {place.files}: is not there" in done.stderr
    record = place.last()
    assert (record.status, record.end_reason) == (Status.REFUSED, EndReason.SANDBOX_UNAVAILABLE)
    assert record.started_at is None and record.outputs == []
    place.set(more="on_unreadable = 'note'")
    assert found(place.forge.record("exec", *SMALL, "--", "true")) == {"reference": "before"}


@pytest.mark.parametrize("on_loss", ["kill", "continue"])
def test_a_controller_that_is_killed_leaves_a_record_that_says_so(place: Place, on_loss: str) -> None:
    with open(place.forge.home / "settings.toml", "a") as settings:
        settings.write(f"[supervision]\non_controller_loss = '{on_loss}'\n")
    with place.running() as process:
        place.damage()
        process.kill()
        process.wait(60)
    place.open()
    record = wait_until("its end", lambda: one if (one := place.last()).status.is_final else None)
    assert record.guard is not None and record.guard.after_at is None and record.wants_second_look
    engine = Engine(load_settings(place.forge.home))
    # its supervisor goes a moment after the record is final, and is left alone until then
    wait_until("the reconciliation", lambda: reconcile(engine) and not place.last().wants_second_look)
    looked_at_again(place, EndReason.CONTROLLER_LOST if on_loss == "kill" else EndReason.COMPLETED)


def looking(place: Place) -> bool:
    with contextlib.suppress(ValueError, FileNotFoundError):  # there is no execution yet, or it has no record
        return place.last().message.startswith("Looking at 1 guarded database and 1 guarded path")
    return False


def test_a_controller_that_is_killed_in_its_first_look(place: Place) -> None:
    with closing(sqlite3.connect(place.database)) as holder:
        holder.execute("BEGIN EXCLUSIVE")  # the look waits for this
        with place.forge.started("exec", *SMALL, "--", "touch", "/forge/outputs/ran") as process:
            wait_until("its look", lambda: looking(place))
            process.kill()
            process.wait(60)
    reconcile(Engine(load_settings(place.forge.home)))
    record = place.last()
    assert record.end_reason is EndReason.CONTROLLER_LOST and "before the analysis began" in record.message
    assert record.guard is None and not record.suspect and record.outputs == []


def test_a_controller_that_is_killed_in_its_second_look(place: Place) -> None:
    with place.running() as process, closing(sqlite3.connect(place.database)) as holder:
        holder.execute("BEGIN EXCLUSIVE")  # the look waits for this
        place.open()
        wait_until("its end", lambda: place.last().status.is_final)
        assert process.poll() is None
        assert place.forge("gc").stdout.startswith("1 alive, 0 closed"), "its controller is still at it"
        process.kill()
        process.wait(60)
    record = place.last()
    assert record.wants_second_look
    wait_until("its supervisor's end", lambda: not supervises(record))
    place.set("analyses = ['nobody']")
    assert place.forge("exec", *SMALL, "--", "true").returncode == 0, "the next start puts it right"
    looked_at_again(place, EndReason.COMPLETED, min(place.forge.executions()))


def supervises(record: ExecutionRecord) -> bool:
    supervisor = read_supervisor(ExecutionFolder(Path(record.folder).parent, record.execution_id))
    return supervisor is not None and supervisor.is_alive


def looked_at_again(place: Place, reason: EndReason, execution_id: str | None = None) -> None:
    record = place.forge.read_record(execution_id) if execution_id else place.last()
    assert record.end_reason is reason and record.suspect and record.guard is not None
    assert record.guard.why_not_after == "the controller was lost" and found(record) == {"lab": "suspect", "reference": "suspect"}
    shown = place.forge("executions", "show", record.execution_id).stdout
    assert "not looked at afterwards: the controller was lost" in shown
    rows = json.loads(place.forge("executions", "list", "--json").stdout)
    assert next(row for row in rows if row["execution_id"] == record.execution_id)["status"] == record.status


def test_a_postgresql_table_that_is_damaged_meanwhile(place: Place, server: Server) -> None:
    for sql in (
        "CREATE EXTENSION amcheck", "CREATE TABLE counts (gene text PRIMARY KEY, number int)",
        "INSERT INTO counts SELECT 'gene ' || n, n FROM generate_series(1, 20000) n",
    ):  # fmt: skip
        server.ask(sql)
    url = server.url.replace("bench@", "bench:hunter2@")
    place.set()
    with open(place.forge.home / "settings.toml", "a") as settings:
        settings.write(f"server = '{url}'\n")
    with place.running() as process:
        server.damage("counts")
        place.open()
        assert process.wait(60) == 0
        said = process.stderr.read() if process.stderr else ""
    assert found(place.last()) == {"server": "corrupted"} and "counts" in said
    assert found(place.forge.record("exec", *SMALL, "--", "true")) == {"server": "before"}
    server.stop()
    refused = place.forge("exec", *SMALL, "--", "true")
    assert refused.returncode == 6 and "server: the server does not answer" in refused.stderr
    everything = said + refused.stderr + "".join(path.read_text() for path in place.forge.home.glob("executions/*/record.json"))
    assert "hunter2" not in everything


def test_a_server_that_goes_meanwhile_is_suspect(place: Place, server: Server) -> None:
    server.ask("CREATE EXTENSION amcheck")
    with open(place.forge.home / "settings.toml", "a") as settings:
        settings.write(f"server = '{server.url}'\n")
    with place.running() as process:
        server.stop()
        place.open()
        assert process.wait(60) == 0
    record = place.last()
    assert found(record) == {"server": "suspect"} and record.suspect and record.guard is not None
    assert "could not be looked at afterwards" in record.guard.findings[0].what


def test_a_password_is_in_no_process_list(place: Place, server: Server) -> None:
    """Seen from outside while the look is at it."""
    url = server.url.replace("bench@", "bench:hunter2@")
    with open(place.forge.home / "settings.toml", "a") as settings:
        settings.write(f"server = '{url}'\n")
    words: set[bytes] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    words.add(Path("/proc", pid, "cmdline").read_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        place.forge("health")
    finally:
        done.set()
        thread.join()
    asked = [line for line in words if b"bench@" in line and (b"psql" in line or b"pg_amcheck" in line)]
    assert asked, "the clients were seen"
    assert not [line for line in words if b"hunter2" in line]
