"""Bad input: one clear sentence on stderr, the exit status of the design's table, before anything starts, and nothing left."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from forge_orchestration_tests.cli.conftest import SMALL, Refused, sentence, traces
from forge_orchestration_tests.conftest import Forge, prerequisite

pytestmark = pytest.mark.together


class TestWords:
    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            ((), "COMMAND"), (("nosuch",), "nosuch"), (("exec",), "no command"), (("exec", "--"), "no command"),
            (("exec", "--", ""), "no command"), (("exec", "--nosuch", "--", "true"), "--nosuch"), (("exec", "--memory"), "--memory"),
            (("exec", "--", "A=b", "true"), "A=b"), (("run",), "ANALYSIS"), (("executions",), "ACTION"), (("executions", "nosuch"), "nosuch"),
            (("executions", "list", "--limit", "many"), "--limit"), (("executions", "list", "--limit", "0"), "--limit"),
            (("executions", "list", "--status", "fine"), "fine"), (("executions", "logs", "last", "--stream", "x"), "--stream"),
            (("runtimes", "build"), "R"), (("exec", "--seed", "x", "--", "true"), "--seed"),
            (("exec", "--priority", "x", "--", "true"), "--priority"), (("exec", "--priority", "1001", "--", "true"), "priority"),
            (("exec", "--threads", "1.5", "--", "true"), "--threads"), (("exec", "--seed", "-1", "--", "true"), "seed"),
            (("exec", "--threads", "0", "--", "true"), "threads"), (("exec", "--seed", str(2**64), "--", "true"), "seed"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )  # fmt: skip
    def test_what_the_command_does_not_understand(self, refused: Refused, arguments: tuple[str, ...], word: str) -> None:
        refused(2, *arguments, words=(word,))

    @pytest.mark.parametrize("name", ["nosuch", "a\nb\x1b[2J", "", "../forge-python", "x" * 3000, "ö", "\udcff"])
    def test_unknown_runtimes(self, refused: Refused, name: str) -> None:
        refused(4, "exec", f"--runtime={name}", "--", "true", words=("no runtime", "forge-python")) if name else None
        refused(4, "runtimes", "show", "--", name, words=("no runtime", "forge-python"))

    def test_nothing_is_built_if_one_name_is_unknown(self, refused: Refused, forge: Forge) -> None:
        refused(4, "runtimes", "build", "--force", "forge-python", "nosuch", words=("nosuch",))

    @pytest.mark.parametrize("name", ["nosuch", "confinement\n", "x" * 3000, "./nosuch", "/", "/etc", "/etc/passwd", "\udcff"])
    def test_unknown_analyses(self, refused: Refused, name: str) -> None:
        refused(2, "run", name, words=("analysis",))

    @pytest.mark.parametrize("name", ["nosuch", "Local", "x" * 3000, "\x1b[2J"])
    def test_unknown_executors(self, refused: Refused, name: str) -> None:
        refused(2, "exec", "--executor", name, "--", "true", words=("no executor", "local"))
        refused(2, "run", "confinement", "--executor", name, words=("no executor", "local"))

    @pytest.mark.parametrize(
        "value", ["hold_s", "=5", "", "nosuch=5", "hold_s=x", "hold_s=-1", "hold_s=601", "hold_s=nan", "hold_s="]
    )
    def test_parameters(self, refused: Refused, value: str) -> None:
        refused(2, "run", "confinement", f"--param={value}")

    def test_a_parameter_twice(self, refused: Refused) -> None:
        refused(2, "run", "confinement", "--param", "hold_s=1", "--param", "hold_s=2", words=("twice",))

    @pytest.mark.parametrize("value", ["A", "=x", "", "A B=x", "1A=x", "FORGE_SEED=5", "a-b=c", "Ö=1"])
    def test_variables(self, refused: Refused, value: str) -> None:
        refused(2, "exec", f"--env={value}", "--", "true")

    @pytest.mark.parametrize("pattern", ["", "/etc/passwd", "../x", "a/../../b"])
    def test_output_patterns(self, refused: Refused, pattern: str) -> None:
        refused(2, "exec", f"--output={pattern}", "--", "true", words=("FORGE_OUTPUTS",))

    @pytest.mark.parametrize(
        "words",
        [("--", "echo", "\udcff"), ("--env", "A=\udcff", "--", "true"), ("--output", "\udcff", "--", "true")],
        ids=["argument", "variable", "output pattern"],
    )
    def test_what_is_not_utf_8_could_not_be_recorded(self, refused: Refused, words: tuple[str, ...]) -> None:
        refused(2, "exec", *words, words=("UTF-8",))

    @pytest.mark.parametrize("execution", ["../../x", "nosuch", "20260102T030405678-9f86d081/..", "", "a\nb", "\udcff"])
    @pytest.mark.parametrize("action", ["show", "logs"])
    def test_what_is_no_execution_id(self, refused: Refused, action: str, execution: str) -> None:
        refused(2, "executions", action, "--", execution, words=("no execution id",))

    @pytest.mark.parametrize("action", ["show", "logs"])
    def test_an_execution_that_is_not_there(self, refused: Refused, action: str) -> None:
        refused(2, "executions", action, "20260102T030405678-9f86d081", words=("no execution",))

    def test_no_execution_yet(self, other_forge: Forge) -> None:
        sentence(other_forge("executions", "show", "last"), 2, "no execution yet")


class TestLimits:
    @pytest.mark.parametrize(
        ("option", "values"),
        [
            ("memory", ("lots", "-1GiB", "1", "0", "", "1e99", "nan", "2 gib", "9999TiB", "9" * 400, "1KiB")),
            ("cpus", ("two", "-1", "0", "nan", "inf", "1e9", "4000", "")),
            ("pids", ("many", "-5", "0", "3", "1.5", "99999999", "²", "9" * 5000)),
            ("wall-time", ("soon", "-1min", "0", "1ms", "30 days", "9000d", "inf")),
            ("grace", ("x", "-5s", "2h", "nan")),
            ("scratch", ("x", "-1", "1KiB", "100TiB")),
            ("log", ("x", "-1", "1B", "1TiB")),
        ],
    )  # fmt: skip
    def test_malformed_negative_or_too_large(self, refused: Refused, option: str, values: tuple[str, ...]) -> None:
        for value in values:
            refused(2, "exec", f"--{option}={value}", "--", "true", words=(option.replace("-", "_"),))

    def test_above_what_the_deployment_allows(self, other_forge: Forge) -> None:
        (other_forge.home / "settings.toml").write_text('[maximum]\nmemory = "100MiB"\n[defaults]\nmemory = "50MiB"')
        before = traces(other_forge)
        sentence(other_forge("exec", "--memory", "101MiB", "--", "true"), 2, "memory", "101.0 MiB", "100.0 MiB", "settings.toml")
        sentence(other_forge("run", "confinement"), 2, "memory", "256.0 MiB")
        assert traces(other_forge) == before

    def test_defaults_are_never_above_the_maximum(self, other_forge: Forge) -> None:
        (other_forge.home / "settings.toml").write_text('[maximum]\nmemory = "100MiB"')
        assert other_forge.record("exec", "--", "true").limits.memory_bytes == 100 * 2**20


class TestInputs:
    @pytest.mark.parametrize("value", ["x", "", "=", "=/tmp", "x=", "a/b=/tmp", "..=/tmp", "a b=/tmp", "-x=/tmp", "\n=/tmp"])
    def test_syntax_and_names(self, refused: Refused, value: str) -> None:
        refused(2, "exec", f"--input={value}", "--", "true")

    def test_one_name_twice(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        refused(2, "exec", "--input", f"x={tmp_path}/a", "--input", f"x={tmp_path}/a", "--", "true", words=("twice",))

    @pytest.mark.parametrize(
        "path",
        [
            "/etc/passwd",
            "/",
            "/proc/self/environ",
            "/dev/zero",
            "/dev/mem",
            "/sys",
            "/usr/bin/python3",
            "../../../../../etc/passwd",
        ],
    )
    def test_outside_of_the_roots(self, refused: Refused, path: str) -> None:
        refused(2, "exec", "--input", f"x={path}", "--", "true", words=("'x'", "allowed_input_roots"))

    @pytest.mark.parametrize("name", ["nothing", "a\nb\x1b[2J", "x" * 300])
    def test_missing(self, refused: Refused, tmp_path: Path, name: str) -> None:
        refused(2, "exec", "--input", f"x={tmp_path}/{name}", "--", "true", words=("'x'", "cannot be read"))

    def test_a_path_that_is_not_utf_8_could_not_be_recorded(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "\udcff").write_text("content")
        refused(2, "exec", "--input", f"x={tmp_path}/\udcff", "--", "true", words=("UTF-8",))

    def test_links_that_lead_out(self, refused: Refused, tmp_path: Path) -> None:
        os.symlink("/etc/passwd", tmp_path / "link")
        os.symlink("/etc", tmp_path / "folder")
        refused(2, "exec", "--input", f"x={tmp_path}/link", "--", "true", words=("is not in",))
        refused(2, "exec", "--input", f"x={tmp_path}/folder/passwd", "--", "true", words=("is not in",))

    def test_fifo_socket_and_device(self, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        os.mkfifo("fifo", 0o666)
        refused(2, "exec", "--input", f"x={tmp_path}/fifo", "--", "true", words=("is a FIFO",))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket")
            refused(2, "exec", "--input", f"x={tmp_path}/socket", "--", "true", words=("is a socket",))

    def test_device(self, refused: Refused, tmp_path: Path) -> None:
        prerequisite(os.geteuid() == 0, "devices can be made by root only")
        os.mknod(tmp_path / "zero", 0o20666, os.makedev(1, 5))
        refused(2, "exec", "--input", f"x={tmp_path}/zero", "--", "true", words=("is a device",))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything; as another user: see unit/executions/test_inputs.py")
    def test_unreadable(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("secret")
        os.chmod(tmp_path / "a", 0)
        refused(2, "exec", "--input", f"x={tmp_path}/a", "--", "true", words=("cannot be read",))

    def test_forges_own_store(self, refused: Refused, forge: Forge) -> None:
        for path in ("store.db", "runtimes", "", "executions"):
            refused(2, "exec", "--input", f"x={forge.home}/{path}", "--", "true", words=("is not in",))

    def test_of_an_analysis_that_declares_none(self, refused: Refused) -> None:
        refused(2, "run", "confinement", "--input", "x=/tmp", words=("no input 'x'",))

    def test_a_package_path_that_leads_out(self, refused: Refused) -> None:
        refused(2, "exec", "--input", "x=package://../../../../../../etc/passwd", "--", "true", words=("runtime's packages",))


class TestAnalysisFolder:
    @pytest.mark.parametrize(
        ("text", "word"),
        [
            ("command: [python, run.py]\ncolour: red", "colour"), ("command: python run.py", "command"), ("", "analysis.yaml"),
            ("command: [python", "analysis.yaml"), ("command: [x]\nparams: {a: {type: integer}}", "integer"),
            ("command: [x]\nlimits: {ram: 1GiB}", "ram"), ("command: [x]\noutputs: {a: ../b}", "output 'a'"),
            ("command: [x]\nruntime: [a]", "runtime"), ("command: [x]\nthreads: many", "threads"),
            ("command: !!python/object/apply:os.system ['touch /tmp/forge-was-here']", "analysis.yaml"),
            ("command: [x]\nparams: {a: {type: int}}", "no default"), ("command: [x]\ninputs: {a: {path: nothing}}", "'a'"),
            ("command: [x]\ninputs: {a: {path: \"a\\0b\"}}", "'a'"), ("command: [x]\nenv: {FORGE_HOME: x}", "FORGE_HOME"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_in_it(self, refused: Refused, tmp_path: Path, text: str, word: str) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "analysis.yaml").write_text(text)
        refused(2, "run", f"{tmp_path}/mine", words=(word,))
        assert not os.path.exists("/tmp/forge-was-here")

    def test_a_runtime_that_is_unknown(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "analysis.yaml").write_text("command: [x]\nruntime: nosuch")
        refused(4, "run", f"{tmp_path}/mine", words=("nosuch",))

    def test_a_runtime_that_is_not_built(self, other_forge: Forge) -> None:
        shutil.rmtree(other_forge.home / "runtimes" / "forge-python")
        before = traces(other_forge)
        sentence(other_forge("run", "confinement"), 4, "not built", "forge runtimes build forge-python")
        sentence(other_forge("exec", "--", "true"), 4, "not built")
        assert traces(other_forge) == before

    def test_a_runtime_that_was_edited(self, other_forge: Forge) -> None:
        (build,) = (path for path in (other_forge.home / "runtimes" / "forge-python").iterdir() if path.is_dir())
        (build / "prefix" / "evil.pth").touch()
        (build / "verified.json").unlink(missing_ok=True)
        before = traces(other_forge)
        sentence(other_forge("exec", "--", "true"), 4, "evil.pth was added", "forge runtimes repair")
        assert traces(other_forge) == before

    def test_a_folder_that_holds_data(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "analysis.yaml").write_text("command: ['true']")
        with open(tmp_path / "mine" / "data.bin", "wb") as file:
            file.truncate(2**30)
        refused(2, "run", f"{tmp_path}/mine", words=("1.0 GiB", "input"))


EVERY_COMMAND = [
    ("exec", "--", "true"), ("run", "confinement"), ("analyses",), ("executions", "list"), ("executions", "show", "last"),
    ("runtimes", "list"), ("runtimes", "show", "forge-python"), ("doctor",), ("gc",),
]  # fmt: skip


class TestHost:
    def test_no_bubblewrap(self, refused: Refused, tmp_path: Path) -> None:
        refused(3, "exec", "--", "true", words=("bubblewrap", "apt-get install bubblewrap"), env={"PATH": str(tmp_path)})
        refused(3, "run", "confinement", words=("bubblewrap",), env={"PATH": str(tmp_path)})

    def test_doctor_names_it_and_its_remedy(self, forge: Forge, tmp_path: Path) -> None:
        done = forge("doctor", env={"PATH": str(tmp_path)})
        assert done.returncode == 3 and done.stderr == ""
        lines = done.stdout.splitlines()
        (at,) = (number for number, line in enumerate(lines) if line.split()[:3] == ["FAIL", "host", "bubblewrap"])
        assert "apt-get install bubblewrap" in lines[at + 1]

    def test_no_cgroup_that_can_be_written(self, other_forge: Forge) -> None:
        """Beneath a control file no group can be made, by anyone."""
        (other_forge.home / "settings.toml").write_text('[cgroup]\nparent = "cgroup.procs/x"')
        before = traces(other_forge)
        sentence(other_forge("exec", *SMALL, "--", "true"), 3, "cgroup", "cgroup.procs")
        assert traces(other_forge) == before

    @pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
    def test_settings_that_are_broken(self, other_forge: Forge, command: tuple[str, ...]) -> None:
        (other_forge.home / "settings.toml").write_text("memory = ")
        sentence(other_forge(*command), 2, "settings.toml")

    @pytest.mark.parametrize(
        ("text", "word"),
        [("colour = 5", "colour"), ("[defaults]\nmemory = 'lots'", "memory"), ("[identity]\nfirst_uid = 0", "first_uid"),
         ("analysis_folders = ['/nothing']", "/nothing"), ("allowed_input_roots = [5]", "allowed_input_roots")],
    )  # fmt: skip
    def test_settings_that_are_wrong(self, other_forge: Forge, text: str, word: str) -> None:
        (other_forge.home / "settings.toml").write_text(text)
        sentence(other_forge("run", "confinement"), 2, word)

    def test_runtime_folders_that_are_not_there(self, other_forge: Forge) -> None:
        (other_forge.home / "settings.toml").write_text("runtime_folders = ['/nothing']")
        sentence(other_forge("exec", "--", "true"), 4, "/nothing")


class TestHome:
    @pytest.mark.parametrize("home", ["/proc/forge", "/dev/null", "/dev/null/forge", "/sys/forge"])
    @pytest.mark.parametrize(
        "command", [("exec", "--", "true"), ("executions", "list"), ("gc",), ("runtimes", "build", "forge-python")], ids=" ".join
    )
    def test_where_nobody_can_write(self, forge: Forge, home: str, command: tuple[str, ...]) -> None:
        sentence(forge(*command, env={"FORGE_HOME": home}), 2, home)

    def test_a_file(self, forge: Forge, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        sentence(forge("exec", "--", "true", env={"FORGE_HOME": str(tmp_path / "file")}), 2, "FORGE_HOME")
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_folder_that_cannot_be_written(self, forge: Forge, tmp_path: Path) -> None:
        """For root, a file system that is mounted read-only where only this command sees it."""
        (tmp_path / "closed").mkdir(mode=0o500)
        command = [*forge.command, "exec", "--", "true"]
        if os.geteuid() == 0:
            mount = 'mount -t tmpfs -o ro none "$1"; shift; exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", mount, "sh", str(tmp_path / "closed"), *command]
        done = subprocess.run(
            command,
            env=forge.environment({"FORGE_HOME": str(tmp_path / "closed" / "home")}),
            capture_output=True,
            text=True,
            timeout=60,
        )
        sentence(done, 2, "FORGE_HOME")

    @pytest.mark.parametrize(
        "content", [b"no database, but long enough to be taken for one" * 50, b"SQLite format 3\0" + b"\xff" * 5000]
    )
    def test_a_store_that_is_no_database(self, other_forge: Forge, content: bytes) -> None:
        (other_forge.home / "store.db").write_bytes(content)
        sentence(other_forge("exec", *SMALL, "--", "true"), 7, "store.db")
        sentence(other_forge("executions", "list"), 7, "store.db")
        assert (other_forge.home / "store.db").read_bytes() == content
        assert other_forge.executions() == set()

    def test_a_store_of_a_newer_forge(self, other_forge: Forge) -> None:
        import sqlite3

        db = sqlite3.connect(other_forge.home / "store.db")
        db.execute("PRAGMA user_version = 99")
        db.commit()
        db.close()
        sentence(other_forge("exec", *SMALL, "--", "true"), 7, "newer Forge")
