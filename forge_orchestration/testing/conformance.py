"""What every executor does, as tests: the same inputs, outputs, environment, ends, limits, logs and clean-up wherever an analysis runs.

An author imports all of it into a test module and names the executor:

    from forge_orchestration.testing.conformance import *

    @pytest.fixture(scope="module")
    def executor_name() -> str:
        return "mine"

Nothing is skipped but what the executor's capabilities do not claim. `deployment` is a `FORGE_HOME` with the runtime `forge-python`
built; override that fixture to use one that is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forge_orchestration.analyses import load_definition, spec_from_definition
from forge_orchestration.api import command_spec
from forge_orchestration.engine import Engine
from forge_orchestration.errors import ExecutorError, SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executors.base import AnalysisExecutor, ExecutionHandle
from forge_orchestration.model.messages import Message
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.settings import load_settings

__all__ = [
    "TestCancel", "TestCheckpoint", "TestEnds", "TestHostile", "TestInside", "TestLifecycle", "TestLimits", "TestLogs", "TestLost", "TestMessages", "TestOutputs",
    "deployment", "executor_name", "workbench",
]  # fmt: skip

PATIENCE = float(os.environ.get("FORGE_TESTS_PATIENCE", "1"))
_RUN_S = 120.0 * PATIENCE
MIB = 2**20


class Workbench:
    """Runs commands on the executor that is tested."""

    def __init__(self, home: Path, executor: str) -> None:
        self.home, self.name = home, executor
        self.settings = load_settings(home)
        self.engine = Engine(self.settings)

    @property
    def executor(self) -> AnalysisExecutor:
        return self.engine.executor(self.name)

    def run(self, *command: str, listener: Any = None, cancel: threading.Event | None = None, **request: Any) -> ExecutionRecord:
        """Run a command to its end, whatever that is."""
        return self.engine.run(self.spec(*command, **request), listener=listener, cancel=cancel)

    def spec(self, *command: str, **request: Any) -> Any:
        return command_spec(command, self.settings, executor=self.name, **request)

    def python(self, code: str, **request: Any) -> ExecutionRecord:
        """The same of a Python program."""
        return self.run("python", "-c", textwrap.dedent(code), **request)

    def sh(self, script: str, **request: Any) -> ExecutionRecord:
        return self.run("sh", "-c", script, **request)

    def facts(self, code: str, **request: Any) -> Any:
        """What a Python program says as JSON."""
        record = self.python(code, **request)
        assert record.succeeded, (record.message, self.log(record, "stderr"))
        return json.loads(self.log(record))

    def log(self, record: ExecutionRecord, stream: str = "stdout") -> bytes:
        return Path(record.logs[stream].path).read_bytes()

    def output(self, record: ExecutionRecord, path: str) -> bytes:
        return Path(record.folder, "outputs", path).read_bytes()

    def claims(self, limit: str) -> None:
        """Go on only where the executor claims to enforce this limit."""
        if limit not in self.executor.capabilities.limits:
            pytest.skip(f"executor '{self.name}' does not claim the limit {limit}")

    @contextlib.contextmanager
    def elsewhere(self, *command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """`forge exec` of a command, in another process, which is killed if it still runs at the end."""
        words = [sys.executable, "-m", "forge_orchestration.cli.main", "exec", "--json", "--executor", self.name, *command]
        process = subprocess.Popen(
            words, env={**os.environ, "FORGE_HOME": str(self.home), **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def ids(self) -> set[str]:
        return {name for name in os.listdir(self.settings.executions_dir) if not name.startswith(".")}

    def newest(self, before: set[str]) -> ExecutionRecord | None:
        """The record of the execution that was not there before, once it can be read."""
        for execution_id in sorted(self.ids() - before):
            with contextlib.suppress(SpecError):
                return ExecutionFolder(self.settings.executions_dir, execution_id).read_record()
        return None

    def wait_for(self, look: Any, what: str, timeout_s: float = 60.0) -> Any:
        deadline = time.monotonic() + timeout_s * PATIENCE
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.02)
        raise AssertionError(f"within {timeout_s * PATIENCE:g} s there was no {what}")


class Heard:
    """A listener that keeps what it hears, and when."""

    def __init__(self) -> None:
        self.logs: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        self.messages: list[Message] = []
        self.record: ExecutionRecord | None = None
        self.at: dict[str, float] = {}
        self.on_first: Any = None

    def on_started(self, record: ExecutionRecord) -> None:
        self.record = record

    def on_log(self, stream: str, data: bytes) -> None:
        self.at.setdefault(stream, time.monotonic())
        self.logs[stream] += data
        if self.on_first is not None:
            self.on_first()

    def on_message(self, message: Message) -> None:
        self.at.setdefault("message", time.monotonic())
        self.messages.append(message)


@pytest.fixture(scope="module")
def executor_name() -> str:
    """Name of the executor that is tested: override it."""
    raise NotImplementedError("a fixture `executor_name` has to name the executor")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `FORGE_HOME` with the runtime `forge-python` built."""
    home = tmp_path_factory.mktemp("forge") / "home"
    command = [sys.executable, "-m", "forge_orchestration.cli.main", "runtimes", "build", "forge-python"]
    subprocess.run(command, env={**os.environ, "FORGE_HOME": str(home)}, check=True, timeout=600)
    return home


@pytest.fixture(scope="module")
def workbench(deployment: Path, executor_name: str) -> Iterator[Workbench]:
    bench = Workbench(deployment, executor_name)
    bench.executor.check()
    yield bench
    bench.engine.close()


class TestInside:
    """What an analysis finds is the same wherever it runs."""

    def test_variables_and_paths(self, workbench: Workbench) -> None:
        seen = workbench.facts("import os, json; print(json.dumps({**os.environ, 'cwd': os.getcwd()}))", seed=7, threads=2)
        wanted = {
            "FORGE_INPUTS": "/forge/inputs", "FORGE_OUTPUTS": "/forge/outputs", "FORGE_PARAMS": "/forge/params.json",
            "FORGE_MESSAGES": "/forge/messages", "FORGE_SCRATCH": "/forge/scratch", "FORGE_CHECKPOINT": "/forge/checkpoint",
            "FORGE_ANALYSIS": "/forge/analysis", "FORGE_SEED": "7", "FORGE_THREADS": "2", "OMP_NUM_THREADS": "2", "TZ": "UTC", "LC_ALL": "C.UTF-8",
            "HOME": "/forge/scratch", "TMPDIR": "/forge/scratch", "cwd": "/forge/scratch",
        }  # fmt: skip
        assert {name: seen.get(name) for name in wanted} == wanted

    def test_nothing_of_the_callers_environment(self, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORGE_TEST_SECRET", "hush")
        assert "FORGE_TEST_SECRET" not in workbench.facts("import os, json; print(json.dumps(dict(os.environ)))")

    def test_declared_variables(self, workbench: Workbench) -> None:
        assert workbench.facts("import os, json; print(json.dumps(os.environ['WHAT']))", env={"WHAT": "a b 'ü'\n"}) == "a b 'ü'\n"

    def test_parameters(self, workbench: Workbench) -> None:
        params = {"name": 'ü "quoted"', "number": 1.5, "flag": True}
        assert workbench.facts("print(open('/forge/params.json').read())", params=params) == params

    def test_deadline(self, workbench: Workbench) -> None:
        deadline = float(workbench.facts("import os; print(os.environ['FORGE_DEADLINE'])", limits={"wall_time": "100s"}))
        assert abs(deadline - time.time() - 100) < 60 * PATIENCE

    def test_a_file_a_folder_and_a_hostile_name(self, workbench: Workbench, tmp_path: Path) -> None:
        folder = tmp_path / "-a folder 'ü'"
        (folder / "beneath").mkdir(parents=True)
        (folder / "beneath" / "x\ny").write_text("1")
        (tmp_path / "data.txt").write_text("two")
        code = """
            import json, os
            top = os.environ["FORGE_INPUTS"]
            print(json.dumps([open(top + "/data").read(), open(top + "/folder/beneath/x\\ny").read()]))
        """
        assert workbench.facts(code, inputs={"data": str(tmp_path / "data.txt"), "folder": str(folder)}) == ["two", "1"]

    def test_a_file_that_its_owner_alone_may_read(self, workbench: Workbench, tmp_path: Path) -> None:
        private = tmp_path / "private"
        private.write_text("mine")
        private.chmod(0o600)
        record = workbench.sh("cat $FORGE_INPUTS/private", inputs={"private": str(private)})
        assert workbench.log(record) == b"mine", record.message
        assert private.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "place", ["/forge/inputs/data", "/forge/runtime/x", "/forge/lib/x", "/forge/params.json", "/usr/x", "/x"]
    )
    def test_read_only(self, workbench: Workbench, tmp_path: Path, place: str) -> None:
        (tmp_path / "data").write_text("kept")
        record = workbench.sh(f"echo changed > {place}", inputs={"data": str(tmp_path / "data")})
        assert record.end_reason is EndReason.NONZERO_EXIT
        assert (tmp_path / "data").read_text() == "kept"

    @pytest.mark.parametrize("place", ["/forge/scratch", "/forge/outputs", "/forge/checkpoint", "/tmp", "/dev/shm"])
    def test_writable(self, workbench: Workbench, place: str) -> None:
        record = workbench.sh(f"echo x > {place}/x && cat {place}/x")
        assert record.succeeded and workbench.log(record) == b"x\n", workbench.log(record, "stderr")

    def test_who_it_is(self, workbench: Workbench) -> None:
        code = """
            import json, os, pwd
            status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
            print(json.dumps([os.getuid(), pwd.getpwuid(os.getuid()).pw_name, *(status[k].strip() for k in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp"))]))
        """
        uid, name, *rest = workbench.facts(code)
        assert uid != 0 and name == "forge" and rest == ["0" * 16, "0" * 16, "1", "2"]

    def test_no_network(self, workbench: Workbench) -> None:
        names = workbench.facts("import socket, json; print(json.dumps([name for _, name in socket.if_nameindex()]))")
        assert set(names) <= {"lo", "sit0", "tunl0", "ip6tnl0"}

    def test_no_process_of_anybody_else(self, workbench: Workbench) -> None:
        assert len(workbench.facts("import os, json; print(json.dumps([p for p in os.listdir('/proc') if p.isdigit()]))")) <= 4

    def test_two_do_not_see_each_other(self, workbench: Workbench) -> None:
        threads, records = [], []
        script = "echo mine > /tmp/x; echo mine > /dev/shm/x; sleep 1; ls /tmp /dev/shm | wc -l; ls /forge/scratch | wc -l"
        for _ in range(2):
            threads.append(threading.Thread(target=lambda: records.append(workbench.sh(script))))
            threads[-1].start()
        for thread in threads:
            thread.join()
        assert len({workbench.log(record) for record in records}) == 1 and all(record.succeeded for record in records)


class TestOutputs:
    def test_collected_and_hashed(self, workbench: Workbench) -> None:
        record = workbench.sh(
            "mkdir -p $FORGE_OUTPUTS/a/b; printf one > $FORGE_OUTPUTS/a/b/c.txt; printf two > $FORGE_OUTPUTS/d.csv",
            outputs={"d": "*.csv"},
        )
        found = {one.path: (one.name, one.sha256, one.bytes) for one in record.outputs}
        digest = {text: hashlib.sha256(text.encode()).hexdigest() for text in ("one", "two")}
        assert found == {"a/b/c.txt": ("a/b/c.txt", digest["one"], 3), "d.csv": ("d", digest["two"], 3)}
        assert workbench.output(record, "a/b/c.txt") == b"one"

    def test_a_large_one(self, workbench: Workbench) -> None:
        record = workbench.python("import os; open('/forge/outputs/large', 'wb').write(bytes(range(256)) * 4096 * 50)")
        assert record.succeeded and len(workbench.output(record, "large")) == 50 * MIB

    def test_a_declared_one_is_missing(self, workbench: Workbench) -> None:
        record = workbench.sh("true", outputs={"table": "table.csv"})
        assert record.end_reason is EndReason.OUTPUT_REJECTED and "table.csv" in record.message

    def test_kept_of_one_that_fails(self, workbench: Workbench) -> None:
        record = workbench.sh("echo x > $FORGE_OUTPUTS/x; exit 3")
        assert record.end_reason is EndReason.NONZERO_EXIT and workbench.output(record, "x") == b"x\n"

    def test_a_checkpoint_of_nobody_is_kept(self, workbench: Workbench) -> None:
        assert workbench.sh("echo x > $FORGE_CHECKPOINT/x").checkpoint is None  # a bare command has no fingerprint


class TestCheckpoint:
    def test_the_next_attempt_goes_on_where_it_was(self, workbench: Workbench, tmp_path: Path) -> None:
        folder = tmp_path / "counts"
        folder.mkdir()
        script = f"# {workbench.name} {time.time_ns()}\n"  # nobody has a result of it
        script += "if [ -f $FORGE_CHECKPOINT/x ]; then cp $FORGE_CHECKPOINT/x $FORGE_OUTPUTS/x; exit 0; fi\n"
        script += "echo first > $FORGE_CHECKPOINT/x; exit 9\n"
        (folder / "run.sh").write_text(script)
        (folder / "analysis.yaml").write_text("command: [sh, run.sh]\nruntime: forge-python\noutputs: {x: x}\n")
        definition = load_definition(str(folder), workbench.settings)
        spec = spec_from_definition(definition, workbench.settings, executor=workbench.name, cache="use")
        first, second = workbench.engine.run(spec), workbench.engine.run(spec)
        assert first.end_reason is EndReason.NONZERO_EXIT and first.checkpoint is not None and first.checkpoint.kept, first.message
        assert second.succeeded and second.checkpoint is not None, second.message
        assert second.checkpoint.resumed_from == first.execution_id and workbench.output(second, "x") == b"first\n"


class TestMessages:
    def test_metadata_and_progress(self, workbench: Workbench) -> None:
        heard = Heard()
        script = """
            echo '{"type": "progress", "fraction": 0.5, "message": "half"}' > $FORGE_MESSAGES
            echo '{"type": "metadata", "values": {"reads": 12, "name": "x"}}' > $FORGE_MESSAGES
        """
        record = workbench.sh(script, listener=heard)
        assert record.succeeded and record.metadata == {"reads": 12, "name": "x"}, record.message
        assert [(one.type, one.fraction) for one in heard.messages] == [("progress", 0.5), ("metadata", None)]

    @pytest.mark.parametrize(
        "line", ["no json", '{"type": "evil"}', "[]", '{"type": "opened"}', '{"type": "log", "message": "half']
    )
    def test_what_is_wrong_is_no_success(self, workbench: Workbench, line: str) -> None:
        record = workbench.sh(f"printf '%s' '{line}' > $FORGE_MESSAGES; sleep 0.2")
        assert record.end_reason is EndReason.OUTPUT_REJECTED, record.message

    def test_append_only(self, workbench: Workbench) -> None:
        assert workbench.sh("cat $FORGE_MESSAGES").end_reason is EndReason.NONZERO_EXIT


class TestEnds:
    """Each end reason is told as it is on this host."""

    def test_completed(self, workbench: Workbench) -> None:
        record = workbench.sh("exit 0")
        assert (record.status, record.end_reason, record.exit_code, record.signal) == (
            Status.SUCCEEDED,
            EndReason.COMPLETED,
            0,
            None,
        )
        assert record.started_at and record.ended_at and record.executor == workbench.name and record.native_id

    @pytest.mark.parametrize("code", [1, 3, 77])
    def test_nonzero_exit(self, workbench: Workbench, code: int) -> None:
        record = workbench.sh(f"exit {code}")
        assert (record.end_reason, record.exit_code) == (EndReason.NONZERO_EXIT, code)

    def test_not_found(self, workbench: Workbench) -> None:
        record = workbench.run("there-is-no-such-program")
        assert (record.end_reason, record.exit_code) == (EndReason.NONZERO_EXIT, 127), record.message

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
    def test_signaled(self, workbench: Workbench, number: int) -> None:
        record = workbench.python(f"import os; os.kill(os.getpid(), {int(number)})")
        assert (record.end_reason, record.signal) == (EndReason.SIGNALED, number), record.message

    def test_wall_time(self, workbench: Workbench) -> None:
        workbench.claims("wall_time")
        record = workbench.sh("sleep 600", limits={"wall_time": "2s", "grace": "1s"})
        assert record.end_reason is EndReason.WALL_TIME and record.usage.wall_s is not None
        assert 2 <= record.usage.wall_s.value < 2 + 20 * PATIENCE

    @pytest.mark.parametrize(
        "code",
        [
            "x = bytearray(1 << 30)",
            "open('/dev/shm/x', 'wb').write(bytes(1 << 29))",
            "import os\nos.fork()\nx = bytearray(600 << 20)",
        ],
    )
    def test_memory(self, workbench: Workbench, code: str) -> None:
        workbench.claims("memory")
        record = workbench.python(code, limits={"memory": "256MiB"})
        assert record.end_reason is EndReason.MEMORY, (record.message, workbench.log(record, "stderr")[-500:])

    def test_pids(self, workbench: Workbench) -> None:
        workbench.claims("pids")
        record = workbench.python(
            "import os, time\nfor _ in range(50):\n    if os.fork() == 0: time.sleep(60)", limits={"pids": 20}
        )
        assert record.end_reason is EndReason.PIDS, record.message

    def test_scratch(self, workbench: Workbench) -> None:
        workbench.claims("scratch")
        record = workbench.sh("head -c 200000000 /dev/zero > /forge/scratch/x", limits={"scratch": "64MiB"})
        assert record.end_reason is EndReason.SCRATCH, record.message

    def test_canceled(self, workbench: Workbench) -> None:
        heard, cancel = Heard(), threading.Event()
        heard.on_first = cancel.set
        record = workbench.sh("echo up; sleep 600", listener=heard, cancel=cancel, limits={"grace": "1s"})
        assert record.end_reason is EndReason.CANCELED and record.status is Status.CANCELED


class TestLimits:
    def test_each_is_read_back(self, workbench: Workbench) -> None:
        limits = {"memory": "300MiB", "cpus": 0.5, "pids": 50, "scratch": "64MiB", "open_files": 100}
        record = workbench.sh("true", limits=limits)
        wanted = {
            "memory": ("memory_bytes", 300 * MIB),
            "cpus": ("cpus", 0.5),
            "pids": ("pids", 50),
            "open_files": ("open_files", 100),
        }
        for claim, (field, value) in wanted.items():
            if claim in workbench.executor.capabilities.limits:
                assert record.enforced[field].value == pytest.approx(value, rel=1e-3), field
                assert record.enforced[field].source

    def test_open_files(self, workbench: Workbench) -> None:
        workbench.claims("open_files")
        record = workbench.python("x = [open('/dev/null') for _ in range(200)]", limits={"open_files": 100})
        assert record.end_reason is EndReason.NONZERO_EXIT and b"Too many open files" in workbench.log(record, "stderr")

    def test_cpus(self, workbench: Workbench) -> None:
        workbench.claims("cpus")
        record = workbench.python("import time\nend = time.time() + 3\nwhile time.time() < end: pass", limits={"cpus": 0.25})
        usage = record.usage
        assert usage.cpu_user_s and usage.cpu_system_s and usage.wall_s
        assert usage.cpu_user_s.value + usage.cpu_system_s.value < 0.5 * usage.wall_s.value

    def test_what_was_used(self, workbench: Workbench) -> None:
        record = workbench.python("x = bytearray(100 << 20)\nimport time\ntime.sleep(0.3)")
        peak = record.usage.peak_memory_bytes
        assert peak is not None and 100 * MIB < peak.value < 160 * MIB and peak.source

    def test_more_than_is_allowed(self, workbench: Workbench) -> None:
        before = workbench.ids()
        with pytest.raises(SpecError):
            workbench.sh("true", limits={"memory": "900TiB"})
        assert workbench.ids() == before


class TestLogs:
    def test_the_very_bytes(self, workbench: Workbench) -> None:
        code = r"import os; os.write(1, b'\x00\xff one\r\n\x1b[31mno end'); os.write(2, b'apart')"
        record = workbench.python(code)
        assert workbench.log(record) == b"\x00\xff one\r\n\x1b[31mno end" and workbench.log(record, "stderr") == b"apart"

    def test_a_long_line(self, workbench: Workbench) -> None:
        record = workbench.python("print('x' * (4 << 20))")
        assert workbench.log(record) == b"x" * (4 * MIB) + b"\n"

    def test_seen_while_it_runs(self, workbench: Workbench) -> None:
        heard, cancel = Heard(), threading.Event()
        heard.on_first = cancel.set
        record = workbench.sh("echo hello; sleep 600", listener=heard, cancel=cancel, limits={"grace": "1s"})
        assert record.end_reason is EndReason.CANCELED and heard.logs["stdout"] == b"hello\n"

    def test_a_flood_is_cut_and_does_not_end_it(self, workbench: Workbench) -> None:
        workbench.claims("log")
        code = "import sys\nprint('first')\nfor _ in range(40): sys.stdout.write('y' * (1 << 20))\nprint('\\nlast')"
        record = workbench.python(code, limits={"log": "2MiB"})
        log, facts = workbench.log(record), record.logs["stdout"]
        assert record.succeeded and log.startswith(b"first\n") and log.endswith(b"last\n") and len(log) < 3 * MIB
        assert facts.bytes + facts.truncated_bytes == 6 + 40 * MIB + 6

    def test_from_any_offset(self, workbench: Workbench) -> None:
        record = workbench.sh("printf 0123456789")
        handle = ExecutionHandle(execution_id=record.execution_id, native_id=record.native_id or "")
        assert workbench.executor.logs(handle, "stdout", 4) == b"456789" and workbench.executor.logs(handle, "stdout", 10) == b""


class TestCancel:
    def test_it_has_its_grace(self, workbench: Workbench) -> None:
        code = """
            import signal, sys, time
            def last(*_):
                open("/forge/outputs/last", "w").write("saved")
                sys.exit(0)
            signal.signal(signal.SIGTERM, last)
            print("up", flush=True)
            time.sleep(600)
        """
        heard, cancel = Heard(), threading.Event()
        heard.on_first = cancel.set
        record = workbench.python(code, listener=heard, cancel=cancel, limits={"grace": f"{30 * PATIENCE:g}s"})
        assert record.end_reason is EndReason.CANCELED and workbench.output(record, "last") == b"saved"

    def test_who_does_not_listen_is_killed(self, workbench: Workbench) -> None:
        heard, cancel = Heard(), threading.Event()
        heard.on_first = cancel.set
        record = workbench.sh(
            "trap '' TERM; echo up; while :; do sleep 1; done", listener=heard, cancel=cancel, limits={"grace": "1s"}
        )
        assert record.end_reason is EndReason.CANCELED

    def test_again_and_after_the_end(self, workbench: Workbench) -> None:
        record = workbench.sh("true")
        handle = ExecutionHandle(execution_id=record.execution_id, native_id=record.native_id or "")
        workbench.executor.cancel(handle)
        workbench.executor.cancel(handle)
        assert workbench.executor.collect(handle).end_reason is EndReason.COMPLETED


class TestHostile:
    @pytest.mark.parametrize(
        "script",
        [
            "ln -s /etc/passwd $FORGE_OUTPUTS/x", "mkfifo $FORGE_OUTPUTS/x", "ln -s .. $FORGE_OUTPUTS/x",
            "python -c \"import socket; socket.socket(socket.AF_UNIX).bind('/forge/outputs/x')\"",
        ],
        ids=["link", "fifo", "link up", "socket"],
    )  # fmt: skip
    def test_outputs_that_are_no_files(self, workbench: Workbench, script: str) -> None:
        record = workbench.sh(script)
        assert record.end_reason is EndReason.OUTPUT_REJECTED and record.rejected_outputs, record.message

    def test_names(self, workbench: Workbench) -> None:
        names = ["-rf", "ü", "'; rm x", "$(x)", " "]
        record = workbench.python(f"for name in {names!r}: open('/forge/outputs/' + name, 'w').write(name)")
        assert record.succeeded, record.message
        assert {one.path for one in record.outputs} == set(names)

    def test_what_was_closed_to_us(self, workbench: Workbench) -> None:
        record = workbench.sh("mkdir $FORGE_OUTPUTS/d; echo x > $FORGE_OUTPUTS/d/x; chmod 0 $FORGE_OUTPUTS/d $FORGE_OUTPUTS")
        assert record.status.is_final

    def test_nothing_outlives_it(self, workbench: Workbench) -> None:
        mark = f"sleep-{os.getpid()}-{time.monotonic_ns()}"
        record = workbench.python(
            f"""
            import os, signal, time
            for _ in range(20):
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        signal.signal(signal.SIGTERM, signal.SIG_IGN)
                        os.execvp("sh", ["sh", "-c", "while :; do sleep 1; done", "{mark}"])
                    os._exit(0)
            time.sleep(0.5)
            """
        )
        assert record.succeeded
        assert not _running(mark)

    @pytest.mark.parametrize(
        "path",
        ["/etc/shadow", "/root/.ssh", "/run/docker.sock", "/var/run/docker.sock", "/proc/1/root/etc/shadow", "/sys/fs/cgroup"],
    )
    def test_nothing_of_the_host(self, workbench: Workbench, path: str) -> None:
        assert workbench.sh(f"ls -A {path} | grep . || cat {path}").end_reason is EndReason.NONZERO_EXIT


class TestLifecycle:
    def test_submitted_twice_it_runs_once(self, workbench: Workbench) -> None:
        heard = Heard()
        again: list[ExecutionHandle] = []
        executor = workbench.executor
        submit = executor.submit

        def twice(spec: Any, execution: Any) -> ExecutionHandle:
            first = submit(spec, execution)
            again.append(submit(spec, execution))
            return first

        executor.submit = twice  # type: ignore[method-assign]
        try:
            record = workbench.sh("echo once", listener=heard)
        finally:
            executor.submit = submit  # type: ignore[method-assign]
        assert record.succeeded and workbench.log(record) == b"once\n"
        assert [one.native_id for one in again] == [record.native_id]

    def test_collect(self, workbench: Workbench) -> None:
        record = workbench.sh("echo x > $FORGE_OUTPUTS/x")
        handle = ExecutionHandle(execution_id=record.execution_id, native_id=record.native_id or "")
        first, second = workbench.executor.collect(handle), workbench.executor.collect(handle)
        assert first == second and first.outputs == record.outputs

    def test_collect_before_the_end(self, workbench: Workbench) -> None:
        heard, cancel, errors = Heard(), threading.Event(), []

        def look() -> None:
            assert heard.record is not None
            handle = ExecutionHandle(execution_id=heard.record.execution_id, native_id="")
            try:
                workbench.executor.collect(handle)
            except ExecutorError as error:
                errors.append(error)
            assert not workbench.executor.poll(handle).is_final
            cancel.set()

        heard.on_first = look
        workbench.sh("echo up; sleep 600", listener=heard, cancel=cancel, limits={"grace": "1s"})
        assert errors

    def test_cleanup_again(self, workbench: Workbench) -> None:
        record = workbench.sh("true")
        handle = ExecutionHandle(execution_id=record.execution_id, native_id=record.native_id or "")
        for _ in range(2):
            assert workbench.executor.cleanup(handle).processes_killed == 0
        assert record.cleanup.finished_at

    def test_nothing_is_left(self, workbench: Workbench) -> None:
        record = workbench.sh("echo x > /forge/scratch/x; echo x > /tmp/x")
        assert record.succeeded and record.cleanup.finished_at
        assert not (workbench.settings.scratch_dir / record.execution_id).exists()
        workbench.wait_for(lambda: not _running(record.execution_id), "end of who wrote the record", 10)

    def test_followed_by_another_process(self, workbench: Workbench) -> None:
        if not workbench.executor.capabilities.reattach:
            pytest.skip(f"executor '{workbench.name}' does not claim that another process can take over")
        before = workbench.ids()
        settings = workbench.home / "settings.toml"
        kept = settings.read_text() if settings.exists() else None
        settings.write_text((kept or "") + '\n[supervision]\non_controller_loss = "continue"\n')
        try:
            script = 'echo one; sleep 3; echo two; echo \'{"type": "metadata", "values": {"a": 1}}\' > $FORGE_MESSAGES; exit 7'
            with workbench.elsewhere("--", "sh", "-c", script) as process:
                record = workbench.wait_for(lambda: _running_record(workbench, before), "execution that runs")
                process.kill()
            heard = Heard()
            ended = Engine(load_settings(workbench.home)).follow(record.execution_id, listener=heard)
        finally:
            settings.unlink() if kept is None else settings.write_text(kept)
        assert (ended.end_reason, ended.exit_code, ended.metadata) == (EndReason.NONZERO_EXIT, 7, {"a": 1}), ended.message
        assert heard.logs["stdout"] == b"one\ntwo\n" == workbench.log(ended)


class TestLost:
    @pytest.mark.parametrize("after_s", [0.0, 0.1, 0.2, 0.4, 0.8, 1.6])
    def test_the_controller_is_killed_at_any_step(self, workbench: Workbench, after_s: float) -> None:
        before = workbench.ids()
        with workbench.elsewhere("--", "sh", "-c", "echo x > $FORGE_OUTPUTS/x; sleep 1") as process:
            workbench.wait_for(lambda: workbench.ids() - before or process.poll() is not None, "execution")
            time.sleep(after_s * PATIENCE)
            process.kill()
        workbench.sh("true")  # the next start puts right what was left
        done = subprocess.run(
            [sys.executable, "-m", "forge_orchestration.cli.main", "gc", "--json"], env={**os.environ, "FORGE_HOME": str(workbench.home)},
            capture_output=True, check=False, timeout=_RUN_S,
        )  # fmt: skip
        assert json.loads(done.stdout)["problems"] == []
        for execution_id in workbench.ids() - before:
            folder = ExecutionFolder(workbench.settings.executions_dir, execution_id)
            record = workbench.wait_for(lambda f=folder: f.read_record() if f.read_record().status.is_final else None, "end of it")
            assert record.end_reason in (EndReason.CONTROLLER_LOST, EndReason.COMPLETED, EndReason.EXECUTOR_ERROR), record.message
            assert not (workbench.settings.scratch_dir / execution_id).exists()
            workbench.wait_for(lambda one=execution_id: not _running(one), "end of who wrote the record", 10)


def _running_record(workbench: Workbench, before: set[str]) -> ExecutionRecord | None:
    record = workbench.newest(before)
    return record if record is not None and record.status is Status.RUNNING else None


def _running(words: str) -> list[int]:
    """Processes of this host with these words on their command line, but for this one."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if words.encode() in Path("/proc", name, "cmdline").read_bytes():
                    found.append(int(name))
    return found
