"""`forge exec`: streams, exit statuses, records, signals, pipes, outputs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration_tests.cli.conftest import SMALL
from forge_orchestration_tests.conftest import Forge, copy_runtime, leftovers, parse_record, wait_until

pytestmark = pytest.mark.together


class TestStreams:
    def test_stdout_and_stderr_come_as_they_are(self, forge: Forge) -> None:
        done = forge("exec", *SMALL, "--", "sh", "-c", "printf 'out ö\\nno end'; printf 'err\\n' >&2")
        assert (done.returncode, done.stdout, done.stderr) == (0, "out ö\nno end", "err\n")

    def test_bytes_that_are_no_text(self, forge: Forge) -> None:
        done = forge("exec", *SMALL, "--", "sh", "-c", "printf 'a\\377\\000\\033[2Jb'")
        assert done.stdout.encode("utf-8", "surrogateescape") == b"a\xff\x00\x1b[2Jb"

    def test_they_are_seen_while_it_runs(self, forge: Forge) -> None:
        with forge.started("exec", *SMALL, "--", "sh", "-c", "echo first; cat") as process:
            assert process.stdout.readline() == "first\n"
            assert process.poll() is None or process.returncode == 0
            assert process.wait(30) == 0

    def test_it_has_no_input(self, forge: Forge) -> None:
        assert forge("exec", *SMALL, "--", "cat").stdout == ""

    def test_arguments_arrive_as_they_are(self, forge: Forge) -> None:
        words = ["--json", "-x", "a b", "", "'\"\\", "ö💥", "a\nb", "$HOME", "*", "--", "A=b"]
        code = "import json, sys; print(json.dumps(sys.argv[1:]))"
        done = forge("exec", *SMALL, "--", "python", "-c", code, *words)
        assert json.loads(done.stdout) == words

    def test_a_megabyte(self, forge: Forge) -> None:
        done = forge("exec", *SMALL, "--", "sh", "-c", "head -c 1048576 /dev/zero | tr '\\0' x")
        assert done.stdout == "x" * 2**20

    def test_what_is_past_the_log_limit_is_dropped_and_counted(self, forge: Forge) -> None:
        record = forge.record("exec", *SMALL, "--log", "1KiB", "--", "sh", "-c", "head -c 5000 /dev/zero | tr '\\0' x")
        assert record.succeeded
        assert (record.logs["stdout"].bytes, record.logs["stdout"].truncated_bytes) == (1024, 3976)
        assert Path(record.logs["stdout"].path).read_text() == "x" * 512 + "\n[forge: 3976 bytes are left out here]\n" + "x" * 512


class TestJson:
    def test_it_prints_the_record_and_nothing_else(self, forge: Forge) -> None:
        done = forge("exec", "--json", *SMALL, "--", "sh", "-c", "echo noise; echo noise >&2")
        record = parse_record(done)
        assert (done.returncode, done.stderr) == (0, "")
        assert record == forge.read_record(record.execution_id)
        assert Path(record.logs["stdout"].path).read_text() == Path(record.logs["stderr"].path).read_text() == "noise\n"

    def test_also_of_one_that_failed(self, forge: Forge) -> None:
        done = forge("exec", "--json", *SMALL, "--", "false")
        record = parse_record(done)
        assert (done.returncode, done.stderr, record.exit_code) == (1, "", 1)

    def test_a_refusal_prints_no_record(self, forge: Forge) -> None:
        done = forge("exec", "--json", "--memory", "lots", "--", "true")
        assert (done.returncode, done.stdout) == (2, "")

    def test_the_record_has_what_was_asked(self, forge: Forge) -> None:
        record = forge.record(
            "exec", "--memory", "100MiB", "--cpus", "0.5", "--pids", "30", "--wall-time", "1min", "--grace", "2s", "--scratch", "5MiB",
            "--log", "1MiB", "--seed", "7", "--threads", "3", "--env", "X=ö", "--", "sh", "-c", 'test "$FORGE_SEED$X$OMP_NUM_THREADS" = 7ö3',
        )  # fmt: skip
        assert record.succeeded, record.message
        limits = record.limits
        assert (limits.memory_bytes, limits.cpus, limits.pids) == (100 * 2**20, 0.5, 30)
        assert (limits.wall_time_s, limits.grace_s, limits.scratch_bytes, limits.log_bytes) == (60.0, 2.0, 5 * 2**20, 2**20)
        assert {name: record.enforced[name].value for name in ("memory_bytes", "cpus", "pids")} == {
            "memory_bytes": 100 * 2**20, "cpus": 0.5, "pids": 30
        }  # fmt: skip
        assert (record.seed, record.threads, record.runtime.name, record.runtime.chosen_by) == (7, 3, "forge-python", "default")
        assert record.queued_at <= record.started_at <= record.ended_at
        assert record.usage.wall_s.value > 0 and record.usage.peak_memory_bytes.value > 0
        assert record.cleanup.cgroup_removed and record.cleanup.finished_at


HOG = "import os; x = bytearray(1 << 28); x[::4096] = b'x' * len(x[::4096])"
FORKS = "import os, time\nfor _ in range(100): os.fork() or time.sleep(20)"


class TestExitStatus:
    @pytest.mark.parametrize(
        ("status", "reason", "arguments", "words"),
        [
            (0, EndReason.COMPLETED, ("--", "true"), ()),
            (1, EndReason.NONZERO_EXIT, ("--", "sh", "-c", "exit 7"), ("status 7",)),
            (1, EndReason.NONZERO_EXIT, ("--", "nosuchprogram"), ("not found",)),
            (1, EndReason.NONZERO_EXIT, ("--", "/forge/README"), ("cannot be executed",)),
            (1, EndReason.SIGNALED, ("--", "sh", "-c", "kill -SEGV $$"), ("SIGSEGV",)),
            (10, EndReason.MEMORY, ("--", "python", "-c", HOG), ("64.0 MiB", "measured")),
            (11, EndReason.WALL_TIME, ("--wall-time", "0.3s", "--grace", "1s", "--", "sleep", "60"), ("0.3s", "measured")),
            (11, EndReason.WALL_TIME, ("--wall-time", "0.3s", "--grace", "0.2s", "--", "sh", "-c", "trap '' TERM; while :; do :; done"), ("0.3s",)),
            (12, EndReason.PIDS, ("--", "python", "-c", FORKS), ("20",)),
            (13, EndReason.SCRATCH, ("--", "sh", "-c", "head -c 20000000 /dev/zero > big"), ("4.0 MiB", "measured")),
            (13, EndReason.SCRATCH, ("--", "sh", "-c", "head -c 20000000 /dev/zero > /tmp/big"), ("4.0 MiB",)),
            (14, EndReason.OUTPUT_REJECTED, ("--output", "*.csv", "--", "true"), ("*.csv", "$FORGE_OUTPUTS")),
            (14, EndReason.OUTPUT_REJECTED, ("--", "sh", "-c", "ln -s /etc/passwd $FORGE_OUTPUTS/a"), ("a (it is a link",)),
            (14, EndReason.OUTPUT_REJECTED, ("--", "sh", "-c", "echo nonsense > $FORGE_MESSAGES"), ("message",)),
        ],
        ids=lambda value: value.value if isinstance(value, EndReason) else "",
    )  # fmt: skip
    def test_each_end(
        self, forge: Forge, status: int, reason: EndReason, arguments: tuple[str, ...], words: tuple[str, ...]
    ) -> None:
        before = forge.executions()
        done = forge("exec", *SMALL, *arguments)
        assert done.returncode == status, done.stderr
        (execution_id,) = forge.executions() - before
        record = forge.read_record(execution_id)
        assert (record.end_reason, record.status) == (reason, reason.status)
        assert all(word in record.message for word in words), record.message
        if status:
            assert done.stderr.endswith(f"forge: {record.message} [{execution_id}]\n")

    def test_a_hostile_message_is_never_executor_error(self, forge: Forge) -> None:
        """What an analysis writes may end it, but must not make us fail."""
        lines = [
            b'{"__dagster_pipes_version": "0.1", "method": "report_asset_materialization", "params": {"metadata": [1]}}',
            b"[" * 30000, b"\xff\xfe", b'{"type": "metadata", "values": {"a": 1e999}}', b"9" * 6000,
        ]  # fmt: skip
        for line in lines:
            code = f"import os; os.write(os.open(os.environ['FORGE_MESSAGES'], os.O_WRONLY), {line!r} + b'\\n')"
            record = forge.record("exec", *SMALL, "--", "python", "-c", code)
            assert record.end_reason is EndReason.OUTPUT_REJECTED, record.message


class TestSignals:
    @pytest.mark.parametrize(
        ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 15), (signal.SIGHUP, 15)], ids=lambda value: str(value)
    )
    def test_the_execution_ends_and_is_recorded_as_canceled(self, forge: Forge, number: int, status: int) -> None:
        before = forge.executions()
        with forge.started(
            "exec", *SMALL, "--", "sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
        ) as process:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            out, error = process.communicate(timeout=30)
        assert process.returncode == status
        assert out == "bye\n", "it gets SIGTERM and its grace"
        assert "Traceback" not in error
        (execution_id,) = forge.executions() - before
        record = forge.read_record(execution_id)
        assert (record.status, record.end_reason) == (Status.CANCELED, EndReason.CANCELED)

    def test_one_that_does_not_listen_is_killed_after_its_grace(self, forge: Forge) -> None:
        before = forge.executions()
        with forge.started(
            "exec", "--json", *SMALL, "--grace", "0.3s", "--", "sh", "-c", "trap '' TERM; echo ready; while :; do :; done"
        ) as process:
            (execution_id,) = wait_until("the execution", lambda: forge.executions() - before)
            log = forge.home / "executions" / execution_id / "stdout.log"
            wait_until("its first line", lambda: log.exists() and log.read_text() == "ready\n")
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
        assert process.returncode == 130
        record = json.loads(out)
        assert record["end_reason"] == "canceled" and record["execution_id"] == execution_id

    def test_ctrl_c_to_the_whole_group_reaches_the_analysis_through_us_alone(self, forge: Forge) -> None:
        """As a terminal sends it. The sandbox has a session of its own, so it gets SIGTERM, and time to save its work."""
        process = subprocess.Popen(
            [*forge.command, "exec", *SMALL, "--", "sh", "-c", "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done"],
            env=forge.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        with process:
            assert process.stdout.readline() == "ready\n"
            os.killpg(process.pid, signal.SIGINT)
            out, error = process.communicate(timeout=30)
        assert (process.returncode, out) == (130, "saved\n") and "Traceback" not in error


class TestBrokenPipe:
    def test_a_reader_that_goes_away_ends_the_execution_in_silence(self, forge: Forge) -> None:
        before = forge.executions()
        with forge.started("exec", *SMALL, "--grace", "0.5s", "--", "sh", "-c", "while echo y; do sleep 0.01; done") as process:
            assert process.stdout.readline() == "y\n"
            process.stdout.close()
            error = process.stderr.read()
            assert process.wait(30) == 128 + signal.SIGPIPE
        assert error == ""
        (execution_id,) = forge.executions() - before
        assert forge.read_record(execution_id).status is Status.CANCELED

    @pytest.mark.parametrize("command", [("executions", "list"), ("runtimes", "list"), ("analyses", "--json")], ids=" ".join)
    def test_a_list_whose_reader_is_gone_is_silent(self, forge: Forge, command: tuple[str, ...]) -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        done = subprocess.run(
            [*forge.command, *command], env=forge.environment(), stdin=subprocess.DEVNULL, stdout=write_end, stderr=subprocess.PIPE,
            timeout=60,
        )  # fmt: skip
        os.close(write_end)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


# makes every kind of entry and name that a hostile or careless analysis might
MESS = r"""
import contextlib, os, socket
os.chdir(os.environ["FORGE_OUTPUTS"])
for name in (b"plain.csv", b"-rf", b"a b'\"", "ö💥".encode(), b"x" * 255, b"a\nb", b"\xff\xfe", b"\x1b[2J", b"..."):
    with open(name, "wb") as file:
        file.write(b"content of " + name[:4])
os.makedirs("folder/sub")
open("folder/sub/deep.txt", "w").close()
os.symlink("/etc/passwd", "link")
os.symlink("../../../../../../etc", "folder/up")
os.link("plain.csv", "hard")
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
open("closed", "w").close()
os.chmod("closed", 0)
with open("sparse", "wb") as file, contextlib.suppress(OSError):  # an ordinary user's kernel refuses it at once
    file.truncate(1 << 40)
"""


class TestOutputs:
    def test_what_can_be_kept_is_kept_and_the_rest_is_listed(self, forge: Forge) -> None:
        record = forge.record("exec", *SMALL, "--output", "*.csv", "--", "python", "-c", MESS)
        assert record.end_reason is EndReason.OUTPUT_REJECTED
        kept = {"sparse"} if os.geteuid() != 0 else set()
        kept |= {"plain.csv", "-rf", "a b'\"", "ö💥", "x" * 255, "...", "hard", "folder/sub/deep.txt"}
        rejected = {item.path: item.why for item in record.rejected_outputs}
        assert {output.path for output in record.outputs} in (kept, kept | {"closed"})
        assert {"a\\nb", "\\xff\\xfe", "\\x1b[2J", "link", "folder/up", "fifo", "socket"} <= set(rejected)
        assert ("sparse" in rejected) is (os.geteuid() == 0)
        folder = Path(record.folder, "outputs")
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} == {
            one.path for one in record.outputs
        }
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        assert (folder / "plain.csv").read_text() == (folder / "hard").read_text() == "content of plai"
        assert forge.read_record(record.execution_id) == record

    def test_names_by_pattern(self, forge: Forge) -> None:
        record = forge.record("exec", *SMALL, "--output", "a.*", "--output", "plots/*.png", "--", "sh", "-c",
                              "cd $FORGE_OUTPUTS; echo 1 > a.csv; mkdir plots; echo 2 > plots/-p.png; echo 3 > extra")  # fmt: skip
        assert record.succeeded, record.message
        assert {one.path: one.name for one in record.outputs} == {"a.csv": "a.*", "plots/-p.png": "plots/*.png", "extra": "extra"}

    def test_deep_folders_and_long_paths_are_rejected_and_never_break_us(self, forge: Forge) -> None:
        code = (
            "import os; os.chdir(os.environ['FORGE_OUTPUTS'])\n"
            "for depth in range(1200): os.mkdir('d' * 200); os.chdir('d' * 200)\n"
            "open('x', 'w').close()"
        )
        record = forge.record("exec", "--memory", "64MiB", "--pids", "20", "--scratch", "32MiB", "--", "python", "-c", code)
        assert record.end_reason is EndReason.OUTPUT_REJECTED, record.message
        assert record.cleanup.finished_at

    def test_an_output_is_an_input_of_the_next(self, forge: Forge) -> None:
        first = forge.record("exec", *SMALL, "--output", "-n ö.txt", "--", "sh", "-c", 'echo 42 > "$FORGE_OUTPUTS/-n ö.txt"')
        assert first.succeeded, first.message
        path = f"{first.folder}/outputs/-n ö.txt"
        os.chmod(path, 0o644)
        second = forge("exec", *SMALL, "--input", f"x={path}", "--", "cat", "/forge/inputs/x")
        assert second.stdout == "42\n", second.stderr


class TestInputs:
    @pytest.mark.parametrize("name", ["a.csv", "-rf", "a b'\"", "ö💥", "a\nb", "x" * 255])
    def test_files_with_hostile_names_are_read_under_the_name_that_was_given(self, forge: Forge, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("content")
        done = forge(
            "exec", *SMALL, "--input", f"reads.1={tmp_path / name}", "--", "sh", "-c", "ls $FORGE_INPUTS; cat $FORGE_INPUTS/reads.1"
        )
        assert (done.returncode, done.stdout) == (0, "reads.1\ncontent"), done.stderr

    def test_they_cannot_be_written(self, forge: Forge, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("content")
        os.chmod(tmp_path / "a", 0o666)
        done = forge("exec", *SMALL, "--input", f"x={tmp_path / 'a'}", "--", "sh", "-c", "echo evil > /forge/inputs/x")
        assert done.returncode == 1 and "Read-only" in done.stderr
        assert (tmp_path / "a").read_text() == "content"


class TestEnvironment:
    def test_nothing_is_inherited(self, forge: Forge) -> None:
        done = forge("exec", *SMALL, "--", "env", env={"SECRET_OF_THE_HOST": "x", "PYTHONPATH": "/x", "LD_LIBRARY_PATH": "/x"})
        names = {line.split("=")[0] for line in done.stdout.splitlines()}
        assert not names & {"SECRET_OF_THE_HOST", "LD_LIBRARY_PATH", "FORGE_HOME"}
        assert "PYTHONPATH=/forge/lib" in done.stdout.splitlines()
        assert {"FORGE_OUTPUTS", "FORGE_SEED", "FORGE_DEADLINE", "HOME", "TMPDIR"} <= names

    def test_a_declared_preload_is_seen_by_the_command_alone(self, forge: Forge) -> None:
        """The loader complains once for each program it is set for: bubblewrap, setpriv and env are none of them."""
        done = forge("exec", *SMALL, "--env", "LD_PRELOAD=/forge/inputs/evil.so", "--", "true")
        assert done.returncode == 0
        assert done.stderr.count("evil.so") == 1, done.stderr


def test_while_it_runs_it_can_be_found_and_afterwards_not(other_forge: Forge) -> None:
    """The leak check of the whole session sees each kind of thing that could be left."""
    with other_forge.started("exec", *SMALL, "--", "sh", "-c", "echo ready; sleep 60") as process:
        assert process.stdout.readline() == "ready\n"
        found = leftovers(other_forge.home)
        kinds = {line.split()[0] for line in found}
        assert {"process", "supervisor", "cgroup"} <= kinds, found
        assert ({"mount", "loop", "claim"} if os.geteuid() == 0 else {"scratch"}) <= kinds, found
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    wait_until("everything to be gone", lambda: not leftovers(other_forge.home))


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_streams_that_the_caller_has_closed_lead_nowhere(forge: Forge, closed: str) -> None:
    """No file of Forge's takes their place, to be written into."""
    before = forge.executions()
    words = [*forge.command, "exec", *SMALL, "--", "sh", "-c", "echo out; echo err >&2; cat; exit 3"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *words], env=forge.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and "internal error" not in done.stderr, done
    (one,) = forge.executions() - before
    record = forge.read_record(one)
    assert record.exit_code == 3 and (Path(record.folder) / "stdout.log").read_text() == "out\n"
    assert json.loads(forge("executions", "show", "--json", one).stdout)["exit_code"] == 3


def test_a_home_whose_path_is_hostile(forge: Forge, tmp_path: Path) -> None:
    home = tmp_path / "-a\nb'\"$(x) ö \\n"
    home.mkdir(mode=0o700)
    copy_runtime(forge.home, home)
    hostile = Forge(home)
    record = hostile.record("exec", *SMALL, "--", "sh", "-c", "echo 1 > $FORGE_OUTPUTS/a")
    assert record.succeeded, record.message
    assert (Path(record.folder) / "outputs/a").read_text() == "1\n"
    wait_until("the loop devices of its standby supervisors to detach", lambda: not leftovers(home))
