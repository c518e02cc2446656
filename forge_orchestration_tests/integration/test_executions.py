"""One execution from its spec to its record, through the public Python call."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import textwrap
import threading
from pathlib import Path

import dagster_pipes
import jsonschema
import psutil
import pytest

import forge_orchestration
from forge_orchestration import EndReason, ExecutionRecord, SpecError
from forge_orchestration.model.messages import Message
from forge_orchestration.model.record import record_from_json
from forge_orchestration_tests.conftest import PATIENCE, Forge, prerequisite, wait_until
from forge_orchestration_tests.security.arena import OWN_UIDS


class Recorder:
    """Keeps what an execution says."""

    def __init__(self) -> None:
        self.logs = {"stdout": b"", "stderr": b""}
        self.messages: list[Message] = []
        self.started: ExecutionRecord | None = None

    def on_started(self, record: ExecutionRecord) -> None:
        self.started = record

    def on_log(self, stream: str, data: bytes) -> None:
        self.logs[stream] += data

    def on_message(self, message: Message) -> None:
        self.messages.append(message)


def test_a_record_holds_what_happened(forge_home: Path, tmp_path: Path) -> None:
    data = forge_home.parent / "numbers.txt"
    data.write_text("1\n2\n3\n")
    data.chmod(0o644)
    code = "import os, json; n = sum(map(int, open(os.environ['FORGE_INPUTS'] + '/numbers'))); print(n); "
    code += "json.dump({'sum': n, 'seed': os.environ['FORGE_SEED']}, open(os.environ['FORGE_OUTPUTS'] + '/sum.json', 'w'))"
    record = forge_orchestration.run(
        ["python", "-c", code], inputs={"numbers": str(data)}, outputs={"result": "*.json"}, seed=7, limits={"memory": "128MiB"}
    )
    assert record.end_reason is EndReason.COMPLETED and record.exit_code == 0
    assert json.loads(Path(record.folder, "outputs", "sum.json").read_text()) == {"sum": 6, "seed": "7"}
    assert [(one.name, one.path) for one in record.outputs] == [("result", "sum.json")]
    assert record.inputs[0].bytes == 6 and len(record.inputs[0].sha256) == 64
    assert set(record.isolation.protections.values()) == {"on"} or record.isolation.mode != "own_uid"
    assert record.cleanup.cgroup_removed and record.cleanup.finished_at
    assert record.runtime.name == "forge-python" and len(record.runtime.content_digest) == 64
    assert Path(record.logs["stdout"].path).read_text() == "6\n"
    schema = json.loads(Path(__file__).parents[2].joinpath("docs/record.schema.json").read_text())
    jsonschema.validate(json.loads(Path(record.folder, "record.json").read_text()), schema)


def test_logs_and_messages_are_seen_while_it_runs(forge_home: Path) -> None:
    """The execution waits for the listener's cancel: what it said must have come through before its end."""
    cancel, seen = threading.Event(), Recorder()

    class Canceler(Recorder):
        def on_message(self, message: Message) -> None:
            seen.messages.append(message)
            cancel.set()

        def on_log(self, stream: str, data: bytes) -> None:
            seen.logs[stream] += data

    script = """echo hello; echo '{"type": "progress", "fraction": 0.5, "message": "half"}' > $FORGE_MESSAGES; sleep 60"""
    record = forge_orchestration.run(["sh", "-c", script], listener=Canceler(), cancel=cancel, limits={"grace": "1s"})
    assert record.end_reason is EndReason.CANCELED
    assert seen.logs["stdout"] == b"hello\n"
    assert [(one.type, one.fraction, one.message) for one in seen.messages] == [("progress", 0.5, "half")]


@pytest.mark.parametrize("line", ["no json", '{"type": "evil"}', '{"type": "progress", "fraction": 7}', "[]"])
def test_a_broken_message_ends_it(forge_home: Path, line: str) -> None:
    record = forge_orchestration.run(["sh", "-c", f"echo '{line}' > $FORGE_MESSAGES; sleep 60"])
    assert record.end_reason is EndReason.OUTPUT_REJECTED
    assert "message" in record.message.lower()


def test_opened_and_never_closed_is_a_failure(forge_home: Path) -> None:
    record = forge_orchestration.run(["sh", "-c", """echo '{"type": "opened"}' > $FORGE_MESSAGES"""])
    assert record.end_reason is EndReason.OUTPUT_REJECTED and "closed" in record.message


def test_a_script_for_dagster_pipes_needs_no_change(other_forge: Forge, tmp_path: Path) -> None:
    folder = tmp_path / "piped"
    folder.mkdir()
    shutil.copy(str(dagster_pipes.__file__), folder / "dagster_pipes.py")
    script = """
        from dagster_pipes import open_dagster_pipes
        with open_dagster_pipes() as pipes:
            pipes.log.info("counting")
            pipes.report_asset_materialization(metadata={"reads": pipes.get_extra("reads"), "key": pipes.asset_key})
    """
    (folder / "run.py").write_text(textwrap.dedent(script))
    (folder / "analysis.yaml").write_text(
        "command: [python, run.py]\nruntime: forge-python\nparams: {reads: {type: int, default: 12}}\n"
    )
    record = other_forge.record("run", str(folder))
    assert record.succeeded, record.message
    assert record.metadata == {"reads": 12, "key": "piped"}
    assert '"message":"counting"' in Path(record.folder, "messages.jsonl").read_text()


def test_dagster_pipes_lines_are_understood(forge_home: Path) -> None:
    lines = [
        {"__dagster_pipes_version": "0.1", "method": "opened", "params": {}},
        {"__dagster_pipes_version": "0.1", "method": "log", "params": {"message": "hello", "level": "INFO"}},
        {"__dagster_pipes_version": "0.1", "method": "closed", "params": {}},
    ]
    script = " ".join(f"echo '{json.dumps(line)}' > $FORGE_MESSAGES;" for line in lines)
    recorder = Recorder()
    assert forge_orchestration.run(["sh", "-c", script], listener=recorder).succeeded
    assert [(one.type, one.message) for one in recorder.messages] == [("opened", ""), ("log", "hello"), ("closed", "")]


def test_messages_can_only_be_added_to(forge_home: Path) -> None:
    code = "import os\nfor flags in (os.O_RDONLY, os.O_RDWR):\n  try: os.open('/forge/messages', flags | os.O_NONBLOCK); print('opened')\n"
    code += "  except PermissionError: print('refused')"
    recorder = Recorder()
    forge_orchestration.run(["python", "-c", code], listener=recorder)
    expected = b"refused\nrefused\n" if OWN_UIDS else b"opened\nopened\n"
    assert recorder.logs["stdout"] == expected


def test_concurrent_threads_share_one_spawner(forge_home: Path) -> None:
    records: list[ExecutionRecord] = []
    threads = [threading.Thread(target=lambda: records.append(forge_orchestration.run(["true"]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [record.status for record in records] == ["succeeded"] * 8
    assert len({record.execution_id for record in records}) == 8


def test_an_interrupt_ends_the_sandbox(forge_home: Path) -> None:
    class Interrupter(Recorder):
        def on_log(self, stream: str, data: bytes) -> None:
            super().on_log(stream, data)
            raise KeyboardInterrupt

    recorder = Interrupter()
    with pytest.raises(KeyboardInterrupt):
        forge_orchestration.run(["sh", "-c", "echo on; sleep 60"], listener=recorder, limits={"grace": "1s"})
    from forge_orchestration.executions.folder import ExecutionFolder

    assert recorder.started is not None
    record = ExecutionFolder(forge_home / "executions", recorder.started.execution_id).read_record()
    assert record.end_reason is EndReason.CANCELED


def test_who_ends_all_processes_of_a_service_leaves_it_its_grace(forge_home: Path) -> None:
    """SIGTERM to supervisor, bubblewrap and analysis alike, as `systemctl stop` sends it: the analysis saves what it has."""
    forge, before = Forge(forge_home), Forge(forge_home).executions()
    code = """
import signal, sys, time
def save(*_):
    time.sleep(0.3)
    open("/forge/outputs/last", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
time.sleep(300)
"""
    with forge.started("exec", "--json", "--grace", "20s", "--", "python", "-c", code) as process:

        def up() -> ExecutionRecord | None:
            for one in forge.executions() - before:
                log = forge_home / "executions" / one / "stdout.log"
                if log.exists() and log.read_text() == "up\n":
                    return forge.read_record(one)
            return None

        record = wait_until("the analysis", up)
        assert record.native_id is not None
        supervisor = int(record.native_id.partition(":")[0])
        theirs = {supervisor, *(one.pid for one in psutil.Process(supervisor).children(recursive=True))}
        assert len(theirs) >= 5, "supervisor, entrant, bubblewrap outside and inside, and the command"
        for pid in theirs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=60 * PATIENCE)
    ended = record_from_json(said)
    assert ended.end_reason is EndReason.CANCELED, ended.message
    assert [one.path for one in ended.outputs] == ["last"]


def test_an_input_swapped_after_its_check_is_noticed(forge_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is changed between the check and the mount, as a racing neighbour would."""
    from forge_orchestration.executors.local import LocalExecutor

    data = forge_home.parent / "swapped.txt"
    data.write_text("checked")
    data.chmod(0o644)
    submit = LocalExecutor.submit

    def swap_first(self, spec, execution):
        other = data.with_name("other.txt")
        other.write_text("another")
        other.chmod(0o644)
        other.replace(data)
        return submit(self, spec, execution)

    monkeypatch.setattr(LocalExecutor, "submit", swap_first)
    record = forge_orchestration.run(["cat", "/forge/inputs/data"], inputs={"data": str(data)})
    assert record.end_reason is EndReason.SANDBOX_UNAVAILABLE and "changed" in record.message
    assert Path(record.logs["stdout"].path).read_bytes() == b""


def test_what_is_refused_leaves_nothing(forge_home: Path) -> None:
    before = set((forge_home / "executions").iterdir())
    with pytest.raises(SpecError, match="no analysis"):
        forge_orchestration.run("nonesuch")
    with pytest.raises(SpecError, match="no command"):
        forge_orchestration.run([])
    assert set((forge_home / "executions").iterdir()) == before


def test_an_input_that_only_its_owner_may_read(forge_home: Path, tmp_path: Path) -> None:
    """As root: read by the execution's uid on its own mount, and by no other uid anywhere; its mode and owner stay."""
    prerequisite(os.geteuid() == 0, "executions have a uid of their own as root only")
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    folder.mkdir(mode=0o700)
    for path in (secret, folder / "inside"):
        path.write_text(f"content of {path.name}\n")
        path.chmod(0o600)
        os.chown(path, 4711, 4712)
    os.chown(folder, 4711, 4712)
    record = forge_orchestration.run(
        [
            "sh",
            "-c",
            "cat $FORGE_INPUTS/secret $FORGE_INPUTS/folder/inside; echo x >> $FORGE_INPUTS/secret; touch $FORGE_INPUTS/folder/new",
        ],
        inputs={"secret": str(secret), "folder": str(folder)},
    )
    assert Path(record.logs["stdout"].path).read_text() == "content of secret\ncontent of inside\n"
    complaints = Path(record.logs["stderr"].path).read_text()
    assert complaints.count("Read-only file system") == 2 and record.end_reason == "nonzero_exit"
    assert [(path.stat().st_mode & 0o777, path.stat().st_uid) for path in (secret, folder)] == [(0o600, 4711), (0o700, 4711)]
    assert secret.read_text() == "content of secret\n" and os.listdir(folder) == ["inside"]


def test_each_file_that_a_pattern_stands_for(forge_home: Path, tmp_path: Path) -> None:
    for name in ("s1/reads.fastq", "s2/reads.fastq", "s2/other.txt", "s 3/reads.fastq"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "s2" / "reads.fastq").chmod(0o644 if os.geteuid() else 0o600)  # as root, its owner's alone
    record = forge_orchestration.run(
        ["sh", "-c", "cd $FORGE_INPUTS && find . -type f -exec cat {} + && ! touch reads/new && ! touch reads/s1/new"],
        inputs={"reads": f"{tmp_path}/s*/reads.fastq"},
    )
    assert record.succeeded, record.message
    said = Path(record.logs["stdout"].path).read_text()
    assert sorted(said.replace("fastq", "fastq\n").split("\n")[:-1]) == ["s 3/reads.fastq", "s1/reads.fastq", "s2/reads.fastq"]
    assert [one.name for one in record.inputs] == ["reads/s 3/reads.fastq", "reads/s1/reads.fastq", "reads/s2/reads.fastq"]
