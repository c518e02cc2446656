"""Runtimes that conflict, versions of one name side by side, builds at the same time, and builds that are killed or run out of disk."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_orchestration_tests import conftest
from forge_orchestration_tests.conftest import Forge, prerequisite

pytestmark = pytest.mark.together

SAMPLE, KILLS = 6, 20


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    home = tmp_path_factory.mktemp("versions") / "home ü"
    home.mkdir(mode=0o700)
    conftest._homes.append(home)
    yield Forge(home)


def add(forge: Forge, name: str, folder: Path, requirements: str, *options: str) -> None:
    (folder / f"{name}.in").write_text(requirements)
    added = forge("runtimes", "add", name, folder / f"{name}.in", *options, timeout=200)
    assert added.returncode == 0, added.stderr


def build(forge: Forge, *names: str) -> None:
    built = forge("runtimes", "build", *names, timeout=280)
    assert built.returncode == 0, built.stderr


def shown(forge: Forge, runtime: str) -> dict:
    return json.loads(forge("runtimes", "show", runtime, "--json").stdout)


def test_two_that_conflict_run_side_by_side(forge: Forge, tmp_path: Path) -> None:
    """Each waits until the other is there too, so that they run at the same time."""
    meeting = tmp_path / "meeting"
    add(forge, "numpy-1", tmp_path, "numpy<2\n", "--import", "numpy")
    add(forge, "numpy-2", tmp_path, "numpy>=2\n", "--import", "numpy")
    assert "--hash=sha256:" in (forge.home / "definitions/numpy-1/requirements.txt").read_text()
    build(forge, "numpy-1", "numpy-2")
    meeting.mkdir()
    code = "import numpy, os, sys, time\nprint(numpy.__version__, flush=True)\nwhile len(os.listdir(sys.argv[1])) < 2: time.sleep(0.05)"
    command = ["exec", "--wall-time", "2min", "--input", f"meeting={meeting}"]
    inside = ["--", "python", "-c", code, "/forge/inputs/meeting"]
    with (
        forge.started(*command, "--runtime", "numpy-1", *inside) as first,
        forge.started(*command, "--runtime", "numpy-2", *inside) as second,
    ):
        for number, process in enumerate((first, second)):
            assert process.stdout is not None
            assert process.stdout.readline().startswith(f"{number + 1}.")
        for name in ("a", "b"):  # both have begun: now they may end
            (meeting / name).touch()
        assert first.wait(60) == second.wait(60) == 0


def test_versions_of_one_name_live_side_by_side_until_nobody_asks_for_them(forge: Forge, tmp_path: Path) -> None:
    versions = []
    for version in ("24.0", "24.1"):
        add(forge, "moving", tmp_path, f"packaging=={version}\n", "--import", "packaging", "--replace")
        build(forge, "moving")
        versions.append(shown(forge, "moving")["build"]["build"])
    assert sorted(shown(forge, "moving")["builds"]) == sorted(versions)
    show = ("--", "python", "-c", "import packaging; print(packaging.__version__)")
    old = forge("exec", "--runtime", f"moving@{versions[0][:8]}", *show)
    assert (old.stdout, forge("exec", "--runtime", "moving", *show).stdout) == ("24.0\n", "24.1\n")
    record = forge.record("exec", "--runtime", f"moving@{versions[0]}", *show)
    assert record.runtime is not None and record.runtime.build == versions[0]
    differs = json.loads(forge("runtimes", "diff", f"moving@{versions[0]}", "moving", "--json").stdout)
    assert differs["packages"] == [{"package": "packaging", f"moving@{versions[0]}": "24.0", "moving": "24.1"}]
    for wrong in ("moving@ffff", "moving@"):
        asked = forge("exec", "--runtime", wrong, *show)
        assert (asked.returncode == 0) == (wrong == "moving@"), asked.stderr
    with forge.started("exec", "--runtime", f"moving@{versions[0]}", "--", "sh", "-c", "echo up; sleep 60") as running:
        assert running.stdout is not None and running.stdout.readline() == "up\n"
        collected = forge("runtimes", "gc")
        assert f"no longer asked for: moving/{versions[0]}" in collected.stdout and "removed: moving" not in collected.stdout
        running.send_signal(signal.SIGTERM)
        running.wait(60)
    assert "removed: moving" in forge("runtimes", "gc").stdout
    assert shown(forge, "moving")["builds"] == [versions[1]]
    gone = forge("exec", "--runtime", f"moving@{versions[0]}", *show)
    assert gone.returncode == 4 and "no build whose id begins" in gone.stderr


def test_builds_of_one_runtime_at_once_share_the_result(forge: Forge, tmp_path: Path) -> None:
    add(forge, "shared", tmp_path, "patsy==1.0.1\nnumpy\n", "--import", "patsy")
    with forge.started("runtimes", "build", "shared") as first, forge.started("runtimes", "build", "shared") as second:
        said = [process.communicate(timeout=280) for process in (first, second)]
    assert first.returncode == second.returncode == 0, said
    assert ["waiting for it" in error for _, error in said].count(True) == 1, said
    assert said[0][0] == said[1][0] and len(shown(forge, "shared")["builds"]) == 1


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [SAMPLE, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_a_build_that_is_killed_leaves_the_one_that_is_there(forge: Forge, tmp_path: Path, kills: int) -> None:
    """At random moments of a build that takes the place of another; all of its process group at once."""
    add(forge, "killed", tmp_path, "packaging==24.1\n", "--import", "packaging", "--replace")
    started = time.monotonic()
    build(forge, "killed")
    took_s = time.monotonic() - started
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    killed = 0
    for _ in range(kills):
        with subprocess.Popen(
            [*forge.command, "runtimes", "repair", "killed"], env=forge.environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            try:
                process.wait(moments.uniform(0, took_s))
            except subprocess.TimeoutExpired:
                killed += 1
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        used = forge("exec", "--runtime", "killed", "--", "python", "-c", "import packaging; print(packaging.__version__)")
        assert (used.returncode, used.stdout) == (0, "24.1\n"), used.stderr
    assert killed > kills / 4, "the builds were killed, and did not end before"
    verified = forge("runtimes", "verify", "--full", "killed")
    assert verified.returncode == 0, verified.stdout
    assert forge("runtimes", "repair", "killed").returncode == 0
    assert forge("runtimes", "gc").returncode == 0 and forge("gc").returncode == 0
    left = [path.name for path in (forge.home / "runtimes/.building").iterdir() if path.is_dir()]
    assert not left and not list((forge.home / "runtimes/.retired").glob("killed.*"))


def test_a_disk_that_fills_in_the_middle_of_a_build(forge: Forge, tmp_path: Path) -> None:
    prerequisite(os.geteuid() == 0, "mounting needs root")
    add(forge, "large", tmp_path, "numpy>=2\n", "--import", "numpy")
    home = tmp_path / "small"
    home.mkdir()
    script = """
        mount -t tmpfs -o size=24m,mode=0700 none "$1" && cp -a "$2/definitions" "$1/" && shift 2 &&
        { FORGE_HOME="$HOME_OF_TEST" "$@"; echo "status $?"; ls "$HOME_OF_TEST/runtimes" "$HOME_OF_TEST/runtimes/.building"; }
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", home, forge.home, *forge.command, "runtimes", "build", "large"],
        env={**os.environ, "HOME_OF_TEST": str(home)}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert "status 4" in done.stdout, (done.stdout, done.stderr)
    assert "No space left" in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "large.lock"
