"""A long analysis goes on where it stopped, whatever stopped it, and never from half a checkpoint or from another analysis'."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forge_orchestration.executions import forge_checkpoint
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.sandbox.process_identity import read_supervisor
from forge_orchestration_tests.conftest import PATIENCE, Forge, wait_until

ITEMS = 12
STEP_S = 0.12 * PATIENCE
STEPS = f"""\
import os, sys, time
import forge_checkpoint
with forge_checkpoint.open() as cp:
    made = cp.state or []
    print("from", cp.done)
    for item in cp.remaining(range({ITEMS})):
        time.sleep({STEP_S})
        made.append(item * item)
        cp.save(made)
        print("did", item)
with open(os.environ["FORGE_OUTPUTS"] + "/made.txt", "w") as file:
    file.write(repr(made))
"""
WHOLE = repr([item * item for item in range(ITEMS)])


class Place:
    """A home with analyses of the test's own; they run in another process."""

    def __init__(self, forge: Forge, folder: Path) -> None:
        self.forge, self.home, self.folder = forge, forge.home, folder

    def analysis(self, script: str, name: str = "steps", command: str = "[python, run.py]", more: str = "") -> str:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.py").write_text(script)
        (folder / "analysis.yaml").write_text(
            f"runtime: forge-python\ncommand: {command}\nparams: {{n: {{type: int, default: 1}}}}\n{more}"
        )
        return str(folder)

    def run(self, analysis: str, *words: str) -> ExecutionRecord:
        return self.forge.record("run", analysis, *words)

    def published(self) -> list[Path]:
        return [path for path in self.home.glob("checkpoints/*/*") if not path.name.startswith(".")]

    def log(self, record: ExecutionRecord) -> str:
        return Path(record.folder, "stdout.log").read_text()


@pytest.fixture
def place(other_forge: Forge, tmp_path: Path) -> Place:
    return Place(other_forge, tmp_path / "analyses")


def first_done(place: Place, record: ExecutionRecord) -> int:
    """How many items an execution had as done when it began."""
    return int(place.log(record).split("\n")[0].removeprefix("from "))


def test_after_its_time_was_over(place: Place) -> None:
    steps = place.analysis(STEPS, more="outputs: {made: made.txt}\n")
    one = place.run(steps, "--wall-time", f"{8 * STEP_S:.3f}s")
    assert (
        one.end_reason == "wall_time" and one.checkpoint is not None and one.checkpoint.kept and one.checkpoint.resumed_from is None
    )
    assert "a later execution goes on after item" in Path(one.folder, "stderr.log").read_text()
    done = place.log(one).count("did ")
    two = place.run(steps)
    assert two.succeeded and two.checkpoint is not None and two.checkpoint.resumed_from == one.execution_id
    assert first_done(place, two) == done >= 3 and place.log(two).count("did ") == ITEMS - done
    assert Path(two.folder, "outputs", "made.txt").read_text() == WHOLE
    assert two.cache.reusable and two.fingerprint == one.fingerprint
    assert place.published() == [], "nothing is left to go on with"
    assert not list(place.home.glob("checkpoints/*")), "nor a folder of it"


@pytest.mark.parametrize("how", ["canceled", "controller killed", "supervisor killed", "analysis killed"])
def test_whoever_is_ended(place: Place, how: str) -> None:
    steps = place.analysis(STEPS)
    with place.forge.started("run", steps) as process:
        wait_until("a checkpoint", place.published)
        (execution_id,) = place.forge.executions()
        folder = ExecutionFolder(place.home / "executions", execution_id)
        wait_until("some more", lambda: folder.log("stdout").read_text().count("did ") >= 5)
        did = folder.log("stdout").read_text().count("did ")
        supervisor = read_supervisor(folder)
        assert supervisor is not None
        if how == "canceled":
            process.terminate()
        elif how == "controller killed":
            process.kill()
        elif how == "supervisor killed":
            supervisor.send(signal.SIGKILL)
        else:
            groups = [Path("/proc", name, "cgroup") for name in os.listdir("/proc") if name.isdigit()]
            mine = [path for path in groups if execution_id in _text(path)]
            for path in mine:
                os.kill(int(path.parent.name), signal.SIGKILL)
        process.communicate(timeout=60 * PATIENCE)
    wait_until("the supervisor's end", lambda: not supervisor.is_alive, 60)
    place.forge("gc")
    ended = place.forge.read_record(execution_id)
    assert not ended.succeeded and ended.checkpoint is not None and ended.checkpoint.kept
    again = place.run(steps)
    assert again.succeeded and again.checkpoint is not None and again.checkpoint.resumed_from == execution_id
    # what was saved last may be on its way out when the supervisor goes
    lost = 4 if how == "supervisor killed" else 0
    assert first_done(place, again) >= did - lost
    assert not list(place.home.glob("checkpoints/*"))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_of_another_analysis_is_not_gone_on_from_and_that_is_said(place: Place) -> None:
    steps = place.analysis(STEPS)
    one = place.run(steps, "--wall-time", f"{6 * STEP_S:.3f}s")
    two = place.run(steps, "--param", "n=2", "--wall-time", f"{4 * STEP_S:.3f}s")
    assert first_done(place, two) == 0 and two.checkpoint is not None and two.checkpoint.resumed_from is None
    said = f"The checkpoint of execution {one.execution_id} is not gone on from, because this has changed: param/n from 1 to 2."
    assert two.checkpoint.why == said
    place.analysis(STEPS.replace("made.append(item * item)", "made.append(item * item * 1)"))
    three = place.run(steps)
    assert first_done(place, three) == 0 and "code/run.py" in (three.checkpoint.why if three.checkpoint else "")


LAUNDRY = """\
import ctypes, os, shutil, sys
print("from", int(os.path.exists("/forge/checkpoint/result")), flush=True)
if os.path.exists("/forge/checkpoint/result"):
    shutil.copy("/forge/checkpoint/result", os.environ["FORGE_OUTPUTS"])
    sys.exit(0)
with open("/forge/checkpoint/result", "w") as file:
    file.write("made by a suspect")
libc = ctypes.CDLL(None)
for _ in range(50):
    libc.ptrace(0, 0, 0, 0)
sys.exit(1)
"""


def test_one_of_a_suspect_execution_is_not_gone_on_from_and_that_is_said(place: Place) -> None:
    laundry = place.analysis(LAUNDRY)
    one = place.run(laundry)
    assert one.suspect and one.checkpoint is not None and one.checkpoint.kept
    two = place.run(laundry)
    assert first_done(place, two) == 0 and two.suspect and two.checkpoint is not None and two.checkpoint.resumed_from is None
    said = f"The checkpoint of execution {one.execution_id} is not gone on from, because that execution is suspect."
    assert two.checkpoint.why == said


def test_a_refreshed_one_begins_anew(place: Place) -> None:
    steps = place.analysis(STEPS)
    place.run(steps, "--wall-time", f"{6 * STEP_S:.3f}s")
    assert first_done(place, place.run(steps, "--cache", "refresh")) == 0


def test_plain_files_of_a_shell_script(place: Place) -> None:
    script = """\
cd $FORGE_CHECKPOINT
count=$(cat count 2>/dev/null || echo 0)
echo "from $count"
while [ $count -lt 8 ]; do
  count=$((count + 1)); mkdir -p more/deep; echo $count > more/deep/file; echo $count > .count; mv .count count
done
[ -e half ] && exit 0
printf half > .half.partial
exit 3
"""
    steps = place.analysis(script, command="[sh, run.py]")
    one = place.run(steps)
    assert one.end_reason == "nonzero_exit" and one.checkpoint is not None and one.checkpoint.kept
    (published,) = place.published()
    assert sorted(str(path.relative_to(published)) for path in published.rglob("*")) == [
        "count",
        "more",
        "more/deep",
        "more/deep/file",
    ]
    assert place.log(place.run(steps)) == "from 8\n"


def test_one_who_dies_while_writing_leaves_the_last_whole_one(place: Place) -> None:
    script = """\
import os, time
folder = os.environ["FORGE_CHECKPOINT"]
if os.path.exists(f"{folder}/state"):
    print(open(f"{folder}/state").read(), sorted(os.listdir(folder)))
    raise SystemExit
for text in ("one", "two"):
    open(f"{folder}/.state", "w").write(text)
    os.replace(f"{folder}/.state", f"{folder}/state")
with open(f"{folder}/.state", "w") as file:
    file.write("half of thr")
    file.flush()
    os.kill(os.getpid(), 9)
"""
    steps = place.analysis(script)
    assert place.run(steps).end_reason == "signaled"
    assert place.log(place.run(steps)) == "two ['state']\n"


HOSTILE = {
    "links, pipes and names": """
import os
os.symlink("/etc/passwd", "passwd"); os.symlink("/", "root"); os.mkfifo("fifo"); os.mkdir("folder"); os.symlink("..", "folder/up")
open(b"bad\\xff", "w").close(); open("a\\nb", "w").close(); open("kept", "w").write("kept")
""",
    "churn": """
import os, time
end = time.time() + 2
while time.time() < end:
    open("kept", "w").write("kept"); os.rename("kept", "other"); os.rename("other", "kept")
""",
    "a file that grows for ever": """
import os, time
end, file = time.time() + 2, open("kept", "ab", buffering=0)
while time.time() < end:
    file.write(b"x" * 65536); os.rename("kept", "other"); os.rename("other", "kept")
    if file.tell() > 30 << 20:
        file.truncate(0)
open("kept", "w").write("kept")
""",
    "a sparse file": """
file = open("large", "wb"); file.truncate(1 << 40)
open("kept", "w").write("kept")
""",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_gets_nothing_out(place: Place, name: str) -> None:
    script = f"import os\nos.chdir(os.environ['FORGE_CHECKPOINT'])\nif os.listdir('.'):\n    raise SystemExit\n{HOSTILE[name]}\nraise SystemExit(3)\n"
    steps = place.analysis(script)
    record = place.run(steps, "--scratch", "64MiB")
    assert record.end_reason == "nonzero_exit" and record.checkpoint is not None, record.message
    assert not list(place.home.glob("checkpoints/*/.*")), "nothing half done"
    if name in ("links, pipes and names", "a sparse file"):  # a part of a checkpoint is none
        assert not record.checkpoint.kept and not place.published()
        assert record.checkpoint.why.startswith("Its last checkpoint could not be kept, because of ")
        return
    (published,) = place.published()
    names = {path.name for path in published.iterdir()}
    assert record.checkpoint.kept and names and names <= {"kept", "other"}
    assert all(path.is_file() and not path.is_symlink() and path.stat().st_size <= 64 << 20 for path in published.iterdir())
    assert place.run(steps, "--scratch", "64MiB").succeeded


def test_a_later_one_that_cannot_be_kept_leaves_the_one_before(place: Place) -> None:
    script = """\
import os, time
os.chdir(os.environ["FORGE_CHECKPOINT"])
if os.listdir("."):
    print(open("state").read(), sorted(os.listdir(".")))
    raise SystemExit
open(".state", "w").write("one")
os.rename(".state", "state")
time.sleep(1)
open(".state", "w").write("two")
os.rename(".state", "state")
os.symlink("state", "last")
raise SystemExit(3)
"""
    steps = place.analysis(script)
    record = place.run(steps)
    assert record.checkpoint is not None and record.checkpoint.kept
    assert record.checkpoint.why == "Its last checkpoint could not be kept, because of last: it is a link, not a file."
    assert place.log(place.run(steps)) == "one ['state']\n"


def test_who_saves_without_a_pause_is_not_far_behind(place: Place) -> None:
    script = """\
import os, sys, time
import forge_checkpoint
with forge_checkpoint.open() as cp:
    print("from", cp.state, flush=True)
    end, item = time.time() + 2, 0
    while time.time() < end:
        item += 1
        cp.save(item)
    print("to", item, flush=True)
    time.sleep(60)
"""
    steps = place.analysis(script)
    with place.forge.started("run", steps) as process:
        wait_until("a checkpoint", place.published, 30)
        (execution_id,) = place.forge.executions()
        assert "to " not in (place.home / "executions" / execution_id / "stdout.log").read_text(), "while it saves"
        process.kill()
        process.communicate()
    supervisor = read_supervisor(ExecutionFolder(place.home / "executions", execution_id))
    wait_until("the supervisor's end", lambda: supervisor is None or not supervisor.is_alive, 60)


class TestRefresh:
    def test_another_attempt_of_it_goes_on(self, place: Place) -> None:
        """What is to be refreshed begins anew once."""
        steps = place.analysis(STEPS)
        one = place.run(steps, "--cache", "refresh", "--wall-time", f"{6 * STEP_S:.3f}s")
        two = place.forge.record("resume", one.execution_id, "--wall-time", "1min")
        assert two.succeeded and first_done(place, two) > 0 and two.cache.policy == "refresh"

    def test_a_replay_neither_goes_on_from_one_nor_removes_it(self, place: Place) -> None:
        steps = place.analysis(STEPS)
        one = place.run(steps)
        stopped = place.run(steps, "--cache", "refresh", "--wall-time", f"{6 * STEP_S:.3f}s")
        assert stopped.checkpoint is not None and stopped.checkpoint.kept
        done = place.forge("replay", one.execution_id)
        assert done.returncode == 0 or "made.txt" not in done.stdout, done
        replayed = place.forge.read_record(sorted(place.forge.executions())[-1])
        assert first_done(place, replayed) == 0 and replayed.checkpoint is None and place.published()


def test_one_that_does_not_fit_any_more_is_a_sentence(place: Place) -> None:
    script = """\
import os
path = os.environ["FORGE_CHECKPOINT"] + "/large"
if os.path.exists(path):
    raise SystemExit
open(path, "wb").write(os.urandom(20 << 20))
raise SystemExit(3)
"""
    steps = place.analysis(script)
    assert place.run(steps, "--scratch", "64MiB").checkpoint is not None
    refused = place.run(steps, "--scratch", "8MiB")
    assert refused.end_reason == "sandbox_unavailable"
    assert "cannot be given to this one: No space left on device." in refused.message and "--cache refresh" in refused.message
    assert place.run(steps, "--scratch", "64MiB").succeeded


def test_a_bare_command_has_none(other_forge: Forge) -> None:
    record = other_forge.record("exec", "--", "sh", "-c", "touch $FORGE_CHECKPOINT/x; exit 3")
    assert record.checkpoint is None and not (other_forge.home / "checkpoints").exists()


class TestWithoutForge:
    """The module alone, as it is copied beside a script."""

    def test_in_a_folder(self, tmp_path: Path) -> None:
        def run(until: int) -> list[int]:
            done = []
            with forge_checkpoint.open(str(tmp_path)) as cp:
                total = cp.state or 0
                for item in cp.remaining("abcdef"):
                    if len(done) == until:
                        break
                    done.append(item)
                    total += 1
                    cp.save(total)
            return [*done, cp.done, total]

        assert run(2) == ["a", "b", 2, 2]
        assert run(3) == ["c", "d", "e", 5, 5]
        assert run(9) == ["f", 6, 6]
        assert run(9) == [6, 6]
        assert os.listdir(tmp_path) == ["state"]

    def test_in_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FORGE_CHECKPOINT", raising=False)
        with forge_checkpoint.open() as cp:
            assert [cp.save(item) for item in cp.remaining([1, 2])] == [None, None] and cp.state == 2

    def test_a_save_outside_of_the_loop_says_nothing_of_items(self, tmp_path: Path) -> None:
        with forge_checkpoint.open(str(tmp_path)) as cp:
            cp.save("begun")
        with forge_checkpoint.open(str(tmp_path)) as cp:
            assert (cp.state, cp.done, list(cp.remaining("ab"))) == ("begun", 0, ["a", "b"])

    def test_sigterm_stops_before_the_next_item(self, tmp_path: Path) -> None:
        script = (
            "import forge_checkpoint, os, signal\n"
            f"with forge_checkpoint.open({str(tmp_path)!r}) as cp:\n"
            "    for item in cp.remaining(range(9)):\n"
            "        if item == 3: os.kill(os.getpid(), signal.SIGTERM)\n"
            "        cp.save(item)\n"
        )
        source = Path(forge_checkpoint.__file__)
        shutil.copy(source, tmp_path)
        done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
        assert done.returncode == 143 and done.stderr == "Stopped before item 5; a later execution goes on after item 4.\n"

    @pytest.mark.parametrize("version", ["3.8", "3.9", "3.13"])
    def test_in_old_and_new_pythons(self, tmp_path: Path, version: str) -> None:
        """Compiled as that version would read it."""
        import ast

        ast.parse(Path(forge_checkpoint.__file__).read_text(), feature_version=tuple(map(int, version.split("."))))


class TestResume:
    def test_with_the_files_that_were_run(self, place: Place) -> None:
        steps = place.analysis(STEPS, more="inputs: {note: {path: note.txt}}\noutputs: {made: made.txt}\nenv: {A: b}\n")
        note = Path(steps, "note.txt")
        note.write_text("as it was")
        one = place.run(steps, "--wall-time", f"{8 * STEP_S:.3f}s", "--param", "n=5", "--seed", "3")
        assert one.end_reason == "wall_time"
        Path(steps, "run.py").write_text("raise SystemExit('another script')")
        note.write_text("changed since")
        two = place.forge.record("resume", one.execution_id, "--wall-time", "1min")
        assert (
            two.succeeded
            and two.fingerprint == one.fingerprint
            and (two.attempt, two.previous_execution_id) == (2, one.execution_id)
        )
        assert (two.parameters, two.seed, two.limits.wall_time_s) == ({"n": 5}, 3, 60.0)
        assert two.checkpoint is not None and two.checkpoint.resumed_from == one.execution_id
        assert Path(two.folder, "outputs", "made.txt").read_text() == WHOLE
        assert Path(two.folder, "analysis", "note.txt").read_text() == "as it was"

    def test_of_a_command(self, other_forge: Forge) -> None:
        one = other_forge.record("exec", "--env", "A=b", "--", "sh", "-c", "echo $A; exit 3")
        two = other_forge.record("resume", "last")
        assert (two.command, two.attempt, two.end_reason) == (one.command, 2, "nonzero_exit")
        assert Path(two.folder, "stdout.log").read_text() == "b\n"

    def test_what_cannot_be_is_a_sentence(self, place: Place) -> None:
        steps = place.analysis("import time; time.sleep(params if (params := 0) else 0)")

        def refused(*words: str) -> str:
            done = place.forge("resume", *words)
            assert done.returncode == 2 and done.stderr.startswith("forge: ") and done.stderr.count("\n") == 1, done.stderr
            return done.stderr

        assert "There is no execution yet." in refused("last")
        one, two = place.run(steps), place.run(steps)
        before = place.forge.executions()
        assert "has succeeded: nothing is left to be done." in refused(one.execution_id)
        assert "has succeeded" in refused(two.execution_id) and "is no execution id" in refused("nonsense")
        failed = place.forge.record("exec", "--", "false")
        Path(failed.folder, "request.json").write_text("{")
        assert "is not known any more" in refused(failed.execution_id)
        slow = place.analysis("import time; time.sleep(30)", "slow")
        with place.forge.started("run", slow) as process:
            running = wait_until("it", lambda: place.forge.executions() - before - {failed.execution_id})
            wait_until("its record", lambda: ExecutionFolder(place.home / "executions", *running).record_path.exists())
            assert "has not ended: it is " in refused(*running)
            process.terminate()
            process.communicate(timeout=60 * PATIENCE)
