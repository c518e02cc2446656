"""What was computed is not computed again: when a result is taken, when it must not be, and what Forge says of it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from forge_orchestration.analyses import load_definition, spec_from_definition
from forge_orchestration.engine import Engine
from forge_orchestration.errors import SpecError
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.operations.why import Explanation, explain
from forge_orchestration.resume import system_view
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.conftest import PATIENCE, Forge, wait_until
from forge_orchestration_tests.integration.dagster_support import Deployment

pytestmark = pytest.mark.together

SCRIPT = """\
import json, os, time
from pathlib import Path
ran = Path(os.environ["FORGE_OUTPUTS"])
params = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())
print("computed")
time.sleep(params["wait"])
text = Path(os.environ["FORGE_INPUTS"], "text").read_text()
(ran / "sub").mkdir()
(ran / "count.txt").write_text(f"{len(text.split()) * params['n']}\\n")
(ran / "sub" / "more.txt").write_text(os.urandom(8).hex())
with open(os.environ["FORGE_MESSAGES"], "a") as channel:
    channel.write(json.dumps({"type": "metadata", "values": {"words": len(text.split())}}) + "\\n")
    channel.write(json.dumps({"type": "check", "name": "some", "passed": True}) + "\\n")
"""
DEFINITION = """\
description: Counts words
runtime: forge-python
command: [python, count.py]
inputs: {text: {path: text.txt}, folder: {path: data}}
outputs: {count: count.txt, more: sub/*}
checks: {some: There are words}
params: {n: {type: int, default: 1}, wait: {type: float, default: 0}}
env: {MODE: fast}
partitions: {keys: [a, b]}
limits: {memory: 256MiB}
"""


class Place:
    """An analysis in a home of its own, run by the engine in this process."""

    def __init__(self, forge: Forge, folder: Path) -> None:
        self.forge, self.home = forge, forge.home
        self.folder = folder / "words"
        (self.folder / "data").mkdir(parents=True)
        (self.folder / "count.py").write_text(SCRIPT)
        (self.folder / "analysis.yaml").write_text(DEFINITION)
        (self.folder / "text.txt").write_text("one two three\n")
        (self.folder / "data" / "a.txt").write_text("a")
        self.arguments: dict[str, object] = {"partition": "a"}
        time.sleep(0.15)  # what was written just now is read again each time

    @property
    def engine(self) -> Engine:
        return Engine(load_settings(self.home))

    def spec(self, **changes: object):
        settings = load_settings(self.home)
        return spec_from_definition(load_definition(str(self.folder), settings), settings, **{**self.arguments, **changes})

    def run(self, **changes: object) -> ExecutionRecord:
        return self.engine.run(self.spec(**changes))

    def why(self, **changes: object) -> Explanation:
        return explain(self.engine, self.spec(**changes))

    def running(self) -> list[str]:
        """Records of what runs now."""
        texts = (path.read_text() for path in self.home.glob("executions/*/record.json"))
        return [text for text in texts if '"status": "running"' in text]

    def edit(self, old: str, new: str, name: str = "analysis.yaml") -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))


@pytest.fixture
def place(other_forge: Forge, tmp_path: Path) -> Place:
    return Place(other_forge, tmp_path / "analyses")


class TestAResultIsTaken:
    def test_with_all_that_belongs_to_it(self, place: Place) -> None:
        first, second = place.run(), place.run()
        assert first.succeeded and not first.cache.hit and first.cache.reusable and first.cache.policy == "use"
        assert second.succeeded and second.cache.hit and second.cache.source_execution_id == first.execution_id
        assert second.execution_id != first.execution_id and second.fingerprint == first.fingerprint
        assert second.outputs == first.outputs and second.metadata == first.metadata == {"words": 3}
        assert second.checks == first.checks and second.code == first.code and second.started_at is None
        assert second.message.startswith(f"Nothing was run: the result of execution {first.execution_id}, of ")
        for output in first.outputs:
            assert (
                Path(second.folder, "outputs", output.path).read_bytes() == Path(first.folder, "outputs", output.path).read_bytes()
            )
        assert Path(second.logs["stdout"].path).read_text() == "computed\n" and second.folder in second.logs["stdout"].path
        third = place.run()
        assert third.cache.source_execution_id == first.execution_id, "of the one that ran, not of one that took it"
        assert place.engine.store.status(second.execution_id) == "succeeded"
        assert not (Path(second.folder) / "analysis").exists()

    def test_without_a_copy(self, place: Place) -> None:
        first, second = place.run(), place.run()
        paths = [Path(one.folder, "outputs", "count.txt") for one in (first, second)]
        with open(paths[0], "rb") as old, open(paths[1].with_suffix(".clone"), "wb") as new:
            try:
                fcntl.ioctl(new.fileno(), 0x40049409, old.fileno())
                return  # this file system clones files, and a clone looks like a copy
            except OSError:
                pass
        assert os.path.samefile(*paths), "a second name"

    def test_outlives_the_one_that_it_was_taken_from(self, place: Place) -> None:
        first, second = place.run(), place.run()
        shutil.rmtree(first.folder)
        assert Path(second.folder, "outputs", "count.txt").read_text() == "3\n"
        assert not place.run().cache.hit

    def test_on_the_command_line(self, place: Place) -> None:
        run = ("run", str(place.folder), "--partition", "a")
        first = place.forge.record(*run)
        done = place.forge(*run)
        assert done.returncode == 0 and f"result of              {first.execution_id}" in done.stdout
        assert "computed" not in done.stdout
        why = place.forge("why", str(place.folder), "--partition", "a")
        assert why.stdout.startswith(f"It would not run: execution {first.execution_id}, of ") and why.returncode == 0
        shown = json.loads(place.forge("fingerprint", str(place.folder), "--partition", "a", "--json").stdout)
        assert shown["fingerprint"] == first.fingerprint and shown["parts"] == first.fingerprint_parts

    def test_of_a_bare_command_only_where_that_is_asked_for(self, other_forge: Forge) -> None:
        command = ("--output", "x", "--", "sh", "-c", "date +%N | tee $FORGE_OUTPUTS/x")
        plain = [other_forge.record("exec", *command) for _ in range(2)]
        assert not plain[1].cache.hit and plain[0].fingerprint is None
        asked = [other_forge.record("exec", "--cache", "use", *command) for _ in range(2)]
        assert asked[1].cache.source_execution_id == asked[0].execution_id


class TestPolicies:
    def test_refresh_runs_and_replaces(self, place: Place) -> None:
        first, second = place.run(), place.run(cache="refresh")
        assert not second.cache.hit and second.outputs != first.outputs
        assert place.run().cache.source_execution_id == second.execution_id

    def test_off_runs_and_replaces_nothing(self, place: Place) -> None:
        first, second = place.run(), place.run(cache="off")
        assert not second.cache.hit and not second.cache.reusable
        assert place.run().cache.source_execution_id == first.execution_id

    def test_only_runs_nothing(self, place: Place) -> None:
        with pytest.raises(SpecError, match=r"There is no earlier result of 'words' that could be reused.*forge why words"):
            place.run(cache="only")
        assert place.forge.executions() == set() and place.engine.store.list() == []
        first = place.run()
        assert place.run(cache="only").cache.source_execution_id == first.execution_id

    def test_of_the_deployment_and_of_an_analysis(self, place: Place) -> None:
        (place.home / "settings.toml").write_text('[reuse]\npolicy = "off"\n')
        place.run()
        assert not place.run().cache.hit
        place.edit("env:", "cache: use\nenv:")
        place.run()
        assert place.run().cache.hit
        assert not place.run(cache="refresh").cache.hit

    def test_an_unknown_one_is_refused(self, place: Place) -> None:
        done = place.forge("run", str(place.folder), "--partition", "a", "--cache", "sometimes")
        assert done.returncode == 2 and "'cache' is 'sometimes'; it must be one of use, refresh, off, only." in done.stderr


def _truncated(path: Path) -> None:
    os.truncate(path, 0)


def _one_byte_else(path: Path) -> None:
    facts = path.stat()
    path.write_bytes(b"4\n")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _linked(path: Path) -> None:
    path.rename(path.with_suffix(".away"))
    path.symlink_to(path.with_suffix(".away"))


class TestDamageIsNotServed:
    @pytest.mark.parametrize(
        ("damage", "said", "taken_before"),
        [
            (Path.unlink, "count.txt is missing", False), (_truncated, "count.txt was changed", False),
            (_one_byte_else, "count.txt was changed", False), (_one_byte_else, "count.txt was changed", True),
            (_linked, "count.txt cannot be read", False),
        ],
    )  # fmt: skip
    def test_of_an_output(self, place: Place, damage: Callable[[Path], None], said: str, taken_before: bool) -> None:
        first = place.run()
        if taken_before:
            assert place.run().cache.hit
        damage(Path(first.folder, "outputs", "count.txt"))
        why = place.why()
        assert why.would_run and f"the result of {first.execution_id} is damaged: {said}" in why.sentence
        second = place.run()
        assert second.succeeded and not second.cache.hit and Path(second.folder, "outputs", "count.txt").read_text() == "3\n"
        assert f"The result of {first.execution_id} is damaged: {said}" in second.cache.why
        assert place.run().cache.source_execution_id == second.execution_id

    def test_of_a_record(self, place: Place) -> None:
        first = place.run()
        Path(first.folder, "record.json").write_text("{")
        second = place.run()
        assert not second.cache.hit and "its record cannot be read" in second.cache.why

    def test_what_did_not_succeed_is_never_taken(self, place: Place) -> None:
        place.edit("n: {type: int, default: 1}", "n: {type: int, default: 1}, gone: {type: str, default: x}")
        place.edit("print(", "assert params['gone'] == 'y'\nprint(", "count.py")
        first = place.run()
        assert first.end_reason == "nonzero_exit" and not first.cache.reusable
        why = place.why()
        assert why.sentence == f"It would run: execution {first.execution_id}, of the very same, ended as nonzero_exit."
        assert not place.run().cache.hit


class TestChangedMeanwhile:
    def test_an_input_that_changes_while_the_analysis_runs(self, place: Place) -> None:
        thread_result: list[ExecutionRecord] = []
        thread = threading.Thread(target=lambda: thread_result.append(place.run(params={"wait": 1.5 * PATIENCE})))
        thread.start()
        wait_until("it runs", place.running)
        with open(place.folder / "data" / "a.txt", "a") as file:
            file.write("b")
        thread.join()
        (first,) = thread_result
        assert first.succeeded and not first.cache.reusable
        said = "Input folder was changed while the analysis ran: nobody can say which content this result is of."
        assert first.cache.why == said
        (place.folder / "data" / "a.txt").write_text("a")
        assert "input folder was changed while the analysis ran" in place.why(params={"wait": 1.5 * PATIENCE}).sentence
        assert not place.run(params={"wait": 1.5 * PATIENCE}).cache.hit

    def test_a_controller_that_is_killed_leaves_it_to_the_next(self, place: Place) -> None:
        (place.home / "settings.toml").write_text('[supervision]\non_controller_loss = "continue"\n')
        run = ("run", str(place.folder), "--partition", "a", "--param", "wait=1")
        with place.forge.started(*run) as process:
            wait_until("it runs", place.running)
            process.kill()
        (first,) = place.forge.executions()
        record = wait_until("its end", lambda: (r := place.forge.read_record(first)).status.is_final and r)
        assert record.succeeded and not record.cache.reusable, "nobody has looked at its inputs yet"
        assert place.forge("gc").returncode == 0
        assert place.forge.read_record(first).cache.reusable
        assert place.forge.record(*run).cache.source_execution_id == first


class TestTwins:
    def test_two_at_once_compute_once(self, place: Place) -> None:
        run = ("run", str(place.folder), "--partition", "a", "--param", f"wait={2 * PATIENCE}")
        with place.forge.started(*run) as one:
            wait_until("it began", place.forge.executions)
            with place.forge.started(*run) as other:
                texts = [process.communicate(timeout=60 * PATIENCE) for process in (one, other)]
        records = [place.forge.read_record(one) for one in sorted(place.forge.executions())]
        assert [one.cache.hit for one in records] == [False, True] and all(one.succeeded for one in records)
        assert f"Waiting for execution {records[0].execution_id}, which computes the very same." in texts[1][1]
        assert texts[1][1].count("words: execution ") == 1

    def test_many_threads_compute_once(self, place: Place) -> None:
        engine, records = place.engine, []
        threads = [threading.Thread(target=lambda: records.append(engine.run(place.spec(params={"wait": 0.5})))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(one.cache.hit for one in records) == [False] + [True] * 7

    @pytest.mark.parametrize("how", ["killed", "canceled"])
    def test_the_second_runs_where_the_first_was_ended(self, place: Place, how: str) -> None:
        run = ("run", str(place.folder), "--partition", "a", "--param", f"wait={3 * PATIENCE}")
        with place.forge.started(*run) as one:
            wait_until("it runs", place.running)
            with place.forge.started("run", "--json", *run[1:]) as other:
                wait_until("two", lambda: len(place.forge.executions()) == 2)
                one.send_signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
                one.communicate(timeout=60 * PATIENCE)
                out, _ = other.communicate(timeout=60 * PATIENCE)
        record = json.loads(out)
        assert record["status"] == "succeeded" and record["cache"]["hit"] is False

    def test_one_that_waits_can_be_canceled(self, place: Place) -> None:
        run = ("run", str(place.folder), "--partition", "a", "--param", f"wait={3 * PATIENCE}")
        with place.forge.started(*run) as one:
            wait_until("it began", place.forge.executions)
            with place.forge.started(*run) as other:
                wait_until("two", lambda: len(place.forge.executions()) == 2)
                other.terminate()
                assert other.wait(30 * PATIENCE) == 15
            refused = place.forge(*run, "--no-wait")
            assert refused.returncode == 5 and "computes the very same now" in refused.stderr
            one.terminate()
            one.communicate(timeout=60 * PATIENCE)
        ends = sorted(str(place.forge.read_record(one).end_reason) for one in place.forge.executions())
        assert ends == ["canceled", "canceled"]


def _input(place: Place) -> None:
    (place.folder / "text.txt").write_text("one two four!\n")


def _executable(place: Place) -> None:
    (place.folder / "count.py").chmod(0o755)


def _code_file(place: Place) -> None:
    (place.folder / "more.py").write_text("")


def _file_in_folder(place: Place) -> None:
    (place.folder / "data" / "b.txt").write_text("")


def _renamed_in_folder(place: Place) -> None:
    (place.folder / "data" / "a.txt").rename(place.folder / "data" / "c.txt")


def edit(old: str, new: str, name: str = "analysis.yaml") -> Callable[[Place], None]:
    return lambda place: place.edit(old, new, name)


def asked(**changes: object) -> Callable[[Place], None]:
    return lambda place: place.arguments.update(changes)


# what is done → the parts that have changed, each with what it was and what it is (None: there is no such part)
CHANGES: dict[str, tuple[Callable[[Place], None], dict[str, tuple[str | None, str | None]]]] = {
    "a parameter": (asked(params={"n": 2}), {"param/n": ("1", "2")}),
    "the default of a parameter": (edit("default: 1}", "default: 7}"), {"param/n": ("1", "7")}),
    "a new parameter": (edit("params: {", "params: {k: {type: str, default: x}, "), {"param/k": (None, '"x"')}),
    "what a parameter is as a number": (
        edit("n: {type: int, default: 1}", "n: {type: float, default: 1.0}"),
        {"param/n": ("1", "1.0")},
    ),
    "the seed": (asked(seed=3), {"seed": ("0", "3")}),
    "the threads": (asked(threads=2), {"threads": ("1", "2")}),
    "an input": (_input, {"input/text": ("SHA", "SHA"), "code/text.txt": ("SHA", "SHA")}),
    "another file for an input": (asked(inputs={"text": "OTHER"}), {"input/text": ("SHA", "SHA")}),
    "a file in an input folder": (_file_in_folder, {"input/folder": ("SHA", "SHA"), "code/data/b.txt": (None, "SHA")}),
    "a name in an input folder": (
        _renamed_in_folder,
        {"input/folder": ("SHA", "SHA"), "code/data/a.txt": ("SHA", None), "code/data/c.txt": (None, "SHA")},
    ),
    "a new input": (edit("folder: {path: data}", "folder: {path: data}, o: {path: data/a.txt}"), {"input/o": (None, "SHA")}),
    "an input that is gone": (edit(", folder: {path: data}", ""), {"input/folder": ("SHA", None)}),
    "the script": (edit("computed", "Computed", "count.py"), {"code/count.py": ("SHA", "SHA")}),
    "whether the script can be executed": (_executable, {"code/count.py": ("SHA", "SHA:x")}),
    "a new file beside it": (_code_file, {"code/more.py": (None, "SHA")}),
    "the command": (
        edit("[python, count.py]", "[python, -X, utf8, count.py]"),
        {"command": ('["python","/forge/analysis/count.py"]', '["python","-X","utf8","/forge/analysis/count.py"]')},
    ),
    "a variable": (edit("MODE: fast", "MODE: slow"), {"env/MODE": ('"fast"', '"slow"')}),
    "a new variable": (edit("{MODE: fast}", "{MODE: fast, A: b}"), {"env/A": (None, '"b"')}),
    "a variable that is gone": (edit("env: {MODE: fast}\n", ""), {"env/MODE": ('"fast"', None)}),
    "an output's pattern": (edit("sub/*", "sub/m*"), {"output/more": ('"sub/*"', '"sub/m*"')}),
    "a new output": (edit("{count: count.txt,", "{count: count.txt, all: '*',"), {"output/all": (None, '"*"')}),
    "an output that is gone": (edit(", more: sub/*", ""), {"output/more": ('"sub/*"', None)}),
    "a check": (edit("{some:", "{another: x, some:"), {"checks": ('["some"]', '["another","some"]')}),
    "the runtime": (asked(runtime="tools"), {"runtime": ("SHA", "SHA")}),
}
# what decides nothing
NO_CHANGES: dict[str, Callable[[Place], None]] = {
    "a limit": asked(limits={"memory": "300MiB", "wall_time": "1h"}),
    "the priority": asked(priority=5),
    "the limits of the analysis": edit("256MiB", "300MiB"),
    "the description": edit("Counts words", "Counts the words"),
    "a comment": lambda place: place.edit("runtime:", "# as ever\nruntime:"),
    "the group and tags": lambda place: place.edit("runtime:", "group: g\ntags: [t]\nruntime:"),
    "attempts with more": lambda place: place.edit("runtime:", "retry_with_more: {attempts: 2}\nruntime:"),
    "another partition": edit("keys: [a, b]", "keys: [a, b, c]"),
    "what a parameter may be": edit("n: {type: int, default: 1}", "n: {type: int, default: 1, max: 9}"),
    "a time": lambda place: os.utime(place.folder / "text.txt"),
    "byte code": lambda place: (place.folder / "__pycache__").mkdir(),
    "the same file elsewhere": asked(inputs={"text": "COPY"}),
    "where the analysis lies": lambda place: setattr(place, "folder", Path(shutil.move(place.folder, f"{place.folder.parent}/x/words"))),
}  # fmt: skip


class TestWhy:
    @pytest.fixture(scope="class")
    @staticmethod
    def home(forge_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
        """One execution that all are compared with; each changes a copy of its analysis."""
        from forge_orchestration_tests.conftest import _homes, copy_runtime

        folder = tmp_path_factory.mktemp("why")
        home = folder / "home"
        home.mkdir(mode=0o700)
        _homes.append(home)
        copy_runtime(forge_home, home)
        forge = Forge(home)
        assert forge("runtimes", "add", "tools", "--packages", "coreutils").returncode == 0
        assert forge("runtimes", "build", "tools", timeout=120 * PATIENCE).returncode == 0
        place = Place(forge, folder)
        assert place.run().succeeded
        return place

    @pytest.fixture
    def changed(self, home: Place, tmp_path: Path) -> Place:
        place = Place(home.forge, tmp_path / "analyses")
        (tmp_path / "other.txt").write_text("else\n")
        shutil.copy(place.folder / "text.txt", tmp_path / "copy.txt")
        (tmp_path / "analyses" / "x").mkdir()
        return place

    @staticmethod
    def here(place: Place, tmp_path: Path) -> None:
        """Paths that only the test knows."""
        inputs = place.arguments.get("inputs")
        if isinstance(inputs, dict):
            place.arguments["inputs"] = {"text": str(tmp_path / f"{inputs['text'].lower()}.txt")}

    @pytest.mark.parametrize("name", CHANGES)
    def test_each_part_in_both_directions(self, changed: Place, tmp_path: Path, name: str) -> None:
        change, parts = CHANGES[name]
        assert not changed.why().would_run
        change(changed)
        self.here(changed, tmp_path)
        found = changed.why()
        assert found.would_run
        assert {one.part: (_kind(one.before), _kind(one.now)) for one in found.changes} == parts
        assert all(part in found.sentence for part in list(parts)[:3]) and "has changed: " in found.sentence
        # and back: what is now is what there would be a result of
        shutil.rmtree(changed.folder)
        back = Place(changed.forge, changed.folder.parent)
        assert not back.why().would_run

    @pytest.mark.parametrize("name", NO_CHANGES)
    def test_what_decides_nothing(self, changed: Place, tmp_path: Path, name: str) -> None:
        NO_CHANGES[name](changed)
        self.here(changed, tmp_path)
        found = changed.why()
        assert not found.would_run, found

    def test_another_partition_is_another_result(self, changed: Place) -> None:
        found = changed.why(partition="b")
        assert found.sentence == "It would run: nothing is known of an earlier execution of 'words' for partition 'b'."

    def test_a_policy_that_takes_none(self, changed: Place) -> None:
        assert changed.why(cache="off").sentence == "It would run, because the cache is 'off'."
        changed.arguments["params"] = {"n": 2}
        refused = changed.why(cache="only")
        assert not refused.would_run and refused.sentence.startswith("It would be refused, because nothing but an earlier result")

    def test_programs_of_the_host(self, changed: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        by_hand = tmp_path / "bin"
        by_hand.mkdir()
        status = tmp_path / "status"
        package = "Package: p\nStatus: install ok installed\nArchitecture: all\nVersion: {}\n\nPackage: q\nStatus: deinstall ok config-files\n"
        status.write_text(package.format("1.0-1"))
        monkeypatch.setattr(system_view, "_BY_HAND", (by_hand,))
        monkeypatch.setattr(system_view, "_STATUS", status)
        monkeypatch.setattr(system_view, "_ALTERNATIVES", tmp_path / "alternatives")
        monkeypatch.setattr(system_view, "_LOCAL", tmp_path / "local")
        site = tmp_path / "local" / "lib" / "R" / "site-library"
        site.mkdir(parents=True)
        (tmp_path / "alternatives").mkdir()
        (tmp_path / "alternatives" / "blas").symlink_to("/a")
        settings = changed.home / "settings.toml"
        settings.write_text("verify_max_age_s = 0\n")
        assert changed.run().succeeded and not changed.why().would_run
        status.write_text(package.format("1.0-2"))
        (by_hand / "tool").write_text("#!/bin/sh\n")
        found = {one.part: (_kind(one.before), _kind(one.now)) for one in changed.why().changes}
        assert found == {"system/p:all": ("1.0-1", "1.0-2"), f"system/{by_hand}/tool": (None, "SHA")}
        assert not changed.run().cache.hit
        (by_hand / "tool").write_text("#!/bin/bash\n")
        assert [one.part for one in changed.why().changes] == [f"system/{by_hand}/tool"]
        (by_hand / "tool").unlink()
        status.write_text(package.format("1.0-1"))
        assert not changed.why().would_run
        (site / "DESCRIPTION").write_text("x")
        assert f"system/{tmp_path}/local/lib/R" in [one.part for one in changed.why().changes]
        (site / "DESCRIPTION").unlink()
        (tmp_path / "alternatives" / "blas").unlink()
        (tmp_path / "alternatives" / "blas").symlink_to("/b")
        change = next(one for one in changed.why().changes if one.part.endswith("/blas"))
        assert (change.part, change.before, change.now) == (f"system/{tmp_path}/alternatives/blas", "/a", "/b")
        settings.unlink()


def _kind(value: str | None) -> str | None:
    if value is not None and len(value.removesuffix(":x")) == 64:
        return f"SHA{value[64:]}"
    return value


class TestDagster:
    def test_a_second_run_takes_the_result_of_the_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        deployment = Deployment(tmp_path, reuse=True)
        deployment.build_runtime()
        deployment.add_analysis("words", SCRIPT, "outputs: {count: count.txt}\nchecks: {some: x}\ninputs: {text: {path: text.txt}}\n"
            "params: {n: {type: int, default: 1}, wait: {type: float, default: 0}}\n")  # fmt: skip
        (deployment.analyses / "words" / "text.txt").write_text("a b\n")
        done = [deployment.job_execute("words") for _ in range(2)]
        assert [one.returncode for one in done] == [0, 0], done[0].stderr[-3000:]
        first, second = (one for one in deployment.records() if one["analysis"] == "words")
        assert second["cache"]["hit"] and second["cache"]["source_execution_id"] == first["execution_id"]
        assert f"the result of execution {first['execution_id']}" in done[1].stderr + done[1].stdout
        monkeypatch.setenv("FORGE_HOME", str(deployment.home))
        with dg.DagsterInstance.from_config(str(deployment.launch_folder())) as instance:
            materializations = instance.fetch_materializations(dg.AssetKey(["words"]), limit=10).records
        versions = {one.asset_materialization.tags["dagster/data_version"] for one in materializations}
        assert len(materializations) == 2 and len(versions) == 1
        latest = materializations[0].asset_materialization.metadata
        assert latest["cache/hit"].value is True and latest["cache/source_execution_id"].value == first["execution_id"]
        config = tmp_path / "refresh.yaml"
        config.write_text("ops: {run_words: {config: {cache: refresh}}}\n")
        assert deployment.job_execute("words", config).returncode == 0
        assert not deployment.records()[-1]["cache"]["hit"]
