"""Runtimes of kind conda, from a real channel in a folder: locked, installed, activated, adopted where they are, and found damaged."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rattler.index import index_fs

from forge_orchestration_tests import conftest
from forge_orchestration_tests.conda_channel import environment_yml, make_channel, pack
from forge_orchestration_tests.conftest import Forge, prerequisite

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prerequisite(Path("/usr/bin/python3.11").exists(), "the channel is made of Debian's Python 3.11")
    return make_channel(tmp_path_factory.mktemp("channel"))


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory, channel: Path) -> Iterator[Forge]:
    """With the runtime `local` added and built."""
    home = tmp_path_factory.mktemp("conda") / "home mit ö"
    home.mkdir(mode=0o700)
    conftest._homes.append(home)
    made = Forge(home)
    source = channel / "environment.yml"
    source.write_text(environment_yml(channel, "greeting 1.*", "landmarks"))
    for arguments in (("runtimes", "add", "local", source, "--import", "greeting"), ("runtimes", "build", "local")):
        done = made(*arguments)
        assert done.returncode == 0, done.stderr
    yield made


@pytest.fixture
def adopted(channel: Path) -> Iterator[Path]:
    """An environment that another tool has made, with something that pip has put there. Not beneath `/tmp`, which a sandbox has of its own."""
    from rattler import install, solve

    folder = Path(tempfile.mkdtemp(prefix="forge-adopted-", dir="/var/tmp"))
    folder.chmod(0o755)
    prefix = folder / "envs" / "lab"
    try:
        records = asyncio.run(solve([f"file://{channel}"], ["greeting 2.*", "landmarks"]))
        asyncio.run(install(records, prefix, cache_dir=folder / "cache", show_progress=False))
        pip = prefix / "lib/python3.11/site-packages/piped-3.dist-info"
        pip.mkdir()
        (pip / "METADATA").write_text("Metadata-Version: 2.1\nName: piped\nVersion: 3\n")
        (pip / "RECORD").write_text("piped-3.dist-info/METADATA,,\npiped-3.dist-info/RECORD,,\n")
        yield prefix
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder over HTTP, on the loopback."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def output(forge: Forge, runtime: str, command: str) -> str:
    done = forge("exec", "--runtime", runtime, "--", "sh", "-c", command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(forge: Forge, runtime: str) -> dict:
    return json.loads(forge("runtimes", "show", runtime, "--json").stdout)


def test_it_is_locked_installed_and_activated(forge: Forge) -> None:
    lock = (forge.home / "definitions/local/explicit.txt").read_text()
    assert lock.count("#sha256:") == 3 and "greeting-1.2-0" in lock
    said = output(
        forge,
        "local",
        'greet; where; echo "$LANDMARKS $LANDMARKS_VERSION $CONDA_PREFIX"; echo "$PATH"; tr "\\0" . < "$LANDMARKS/binary"',
    )
    greeting, prefix, variables, path, binary = said.splitlines()
    assert (greeting, prefix) == ("hello from 1.2", "/forge/runtime")
    assert variables == "/forge/runtime/share/landmarks 1.0 /forge/runtime"
    assert path == "/forge/runtime/extra/bin:/forge/runtime/bin:/usr/local/bin:/usr/bin:/bin"
    assert "/forge/runtime" in binary and "placeholder" not in binary and binary.endswith("rest")
    record = forge.record("exec", "--runtime", "local", "--", "python", "-c", "import greeting")
    assert record.runtime is not None and (record.runtime.kind, record.runtime.python) == ("conda", "3.11.2")


def test_two_builds_of_one_lock_are_the_same_wherever_they_are(forge: Forge, tmp_path: Path) -> None:
    home = tmp_path / "elsewhere"
    conftest._homes.append(home)
    other = Forge(home)
    added = other("runtimes", "add", "local", forge.home / "definitions/local/explicit.txt", "--import", "greeting")
    assert added.returncode == 0, added.stderr
    assert other("runtimes", "build", "local").returncode == 0
    first, second = (shown(one, "local")["build"] for one in (forge, other))
    assert first["content_digest"] == second["content_digest"] and first["build"] == second["build"]
    assert first["activation"] == second["activation"]


def test_an_environment_is_adopted_in_place_and_not_touched(forge: Forge, adopted: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in [adopted, *adopted.rglob("*")]}
    assert forge("runtimes", "add", "lab", adopted, "--replace").returncode == 0
    built = forge("runtimes", "build", "lab")
    assert built.returncode == 0, built.stderr
    assert output(forge, "lab", "greet; where; echo $LANDMARKS; ls -A $CONDA_PREFIX/..").splitlines() == [
        "hello from 2.0", str(adopted), f"{adopted}/share/landmarks", "lab",
    ]  # fmt: skip
    assert {path: path.lstat().st_mtime_ns for path in [adopted, *adopted.rglob("*")]} == before
    build = shown(forge, "lab")["build"]
    assert build["packages"] == {"greeting": "2.0", "landmarks": "1.0", "piped": "3", "python": "3.11.2"}
    refused = forge("exec", "--runtime", "lab", "--", "touch", f"{adopted}/new")
    assert refused.returncode == 1 and not (adopted / "new").exists()

    differs = json.loads(forge("runtimes", "diff", "local", "lab", "--json").stdout)
    assert {"package": "greeting", "local": "1.2", "lab": "2.0"} in differs["packages"] and not differs["same_content"]

    (adopted / "lib/python3.11/site-packages/greeting/__init__.py").write_text("def main(): pass\n")
    assert "greeting/__init__.py" in forge("runtimes", "verify", "lab").stdout
    refused = forge("exec", "--runtime", "lab", "--", "greet")
    assert refused.returncode == 4 and "greeting/__init__.py was edited" in refused.stderr
    again = forge("runtimes", "repair", "lab")
    assert again.returncode == 4 and "is not what conda:greeting 2.0 installed" in again.stderr


def test_what_conda_has_installed_is_held_against_what_it_says(forge: Forge, channel: Path) -> None:
    """`conda-meta` torn, and an edit that keeps size and time: found by the full verification, and mended by a repair."""
    source = channel / "damaged.yml"
    source.write_text(environment_yml(channel, "greeting 2.*"))
    assert forge("runtimes", "add", "damaged", source).returncode == 0
    assert forge("runtimes", "build", "damaged").returncode == 0
    prefix = Path(shown(forge, "damaged")["prefix"])
    edited = prefix / "lib/python3.11/site-packages/greeting/__init__.py"
    facts = edited.stat()
    with open(edited, "r+b") as file:  # in place: the cache holds the same file
        file.write(edited.read_bytes().replace(b"2.0", b"9.9"))
    os.utime(edited, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    (metadata,) = (prefix / "conda-meta").glob("python-*.json")
    metadata.write_text(metadata.read_text()[:1000])
    found = forge("runtimes", "verify", "--full", "damaged")
    assert found.returncode == 4
    assert f"{metadata.name} cannot be read" in found.stdout and "greeting/__init__.py has other content" in found.stdout
    assert forge("runtimes", "repair", "damaged").returncode == 0
    assert output(forge, "damaged", "greet") == "hello from 2.0\n"
    assert forge("runtimes", "verify", "--full", "damaged").returncode == 0


BAD = {
    "a digest that is not the package's": ("@EXPLICIT\n{channel}/{here}/landmarks-1.0-0.tar.bz2#sha256:" + "0" * 64, "not the one that was locked"),
    "no digest": ("@EXPLICIT\n{channel}/noarch/greeting-1.2-0.tar.bz2", "no digest for greeting"),
    "a package that is not there": ("@EXPLICIT\n{channel}/noarch/nothing-1-0.tar.bz2#sha256:" + "0" * 64, "nothing-1-0.*cannot be had"),
    "a line that is no package": ("@EXPLICIT\nnumpy", "no package: numpy"),
    "another platform": ("@EXPLICIT\n{channel}/osx-64/greeting-1.2-0.tar.bz2#sha256:" + "0" * 64, "holds for osx-64, and this is"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_lock_is_a_sentence(forge: Forge, channel: Path, tmp_path: Path, case: str) -> None:
    from rattler import Subdir

    text, words = BAD[case]
    (tmp_path / "lock.txt").write_text(text.format(channel=f"file://{channel}", here=Subdir.current()))
    assert forge("runtimes", "add", "bad", tmp_path / "lock.txt", "--replace").returncode == 0
    built = forge("runtimes", "build", "bad")
    assert built.returncode == 4 and len(built.stderr.strip().splitlines()) <= 3, built.stderr
    assert built.stderr.startswith(("forge: ", "bad: ")) and re.search(words, built.stderr), built.stderr
    assert not list((forge.home / "runtimes/.building").glob("bad.*/"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dependencies:\n  - nosuchpackage\nchannels:\n  - file://{channel}\n", "nosuchpackage"),
        ("dependencies:\n  - python\nchannels:\n  - file:///nowhere/at/all\n", "cannot be solved"),
        ("dependencies:\n  - python\n  - pip: [x]\nchannels:\n  - file://{channel}\n", "packages of pip"),
        ("dependencies: [\n", "cannot be used"), ("version: 1\n", "cannot be used"),
    ],
)  # fmt: skip
def test_an_environment_that_cannot_be_locked_is_not_defined(
    forge: Forge, channel: Path, tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "environment.yml").write_text(text.replace("{channel}", str(channel)))
    added = forge("runtimes", "add", "never", tmp_path / "environment.yml")
    assert added.returncode == 4 and words in added.stderr, added.stderr
    assert not (forge.home / "definitions/never").exists()


def test_a_package_that_was_published_anew_is_not_taken_from_the_cache(forge: Forge, tmp_path: Path) -> None:
    """Of the same name and version, from a folder and by HTTP; and the old lock no longer holds."""
    for number, content in enumerate((b"old", b"new")):
        pack(tmp_path / "channel", "noarch", "moving", "1.0", {"share/moving": content})
        asyncio.run(index_fs(tmp_path / "channel", force=True))
        (tmp_path / "environment.yml").write_text(environment_yml(tmp_path / "channel", "moving"))
        assert forge("runtimes", "add", f"moving-{number}", tmp_path / "environment.yml").returncode == 0
        if number == 0:
            assert forge("runtimes", "build", "moving-0").returncode == 0
    assert output(forge, "moving-0", "cat /forge/runtime/share/moving") == "old"
    assert forge("runtimes", "build", "moving-1").returncode == 0
    assert output(forge, "moving-1", "cat /forge/runtime/share/moving") == "new"
    refused = forge("runtimes", "repair", "moving-0")
    assert refused.returncode == 4 and "not the one that was locked" in refused.stderr
    assert output(forge, "moving-0", "cat /forge/runtime/share/moving") == "old"
    with served(tmp_path / "channel") as url:
        lock = (forge.home / "definitions/moving-0/explicit.txt").read_text()
        (tmp_path / "lock.txt").write_text(lock.replace(f"file://{tmp_path}/channel", url))
        assert forge("runtimes", "add", "moving-2", tmp_path / "lock.txt").returncode == 0
        refused = forge("runtimes", "build", "moving-2")
        assert refused.returncode == 4 and "hash mismatch" in refused.stderr, refused.stderr


def test_a_folder_that_is_no_environment(forge: Forge, tmp_path: Path) -> None:
    assert forge("runtimes", "add", "folder", tmp_path).returncode == 0
    built = forge("runtimes", "build", "folder")
    assert built.returncode == 4 and "no conda environment" in built.stderr


def test_a_name_that_is_taken(forge: Forge, tmp_path: Path) -> None:
    for name in ("forge-python", "local"):
        refused = forge("runtimes", "add", name, tmp_path)
        assert refused.returncode == 4 and f"There is a runtime '{name}' already" in refused.stderr
    assert forge("runtimes", "add", "Bad/Name", tmp_path).returncode == 4
    assert "differs from the runtime 'forge-python'" in forge("runtimes", "add", "forge_python", tmp_path).stderr
    assert forge("runtimes", "add", "forge-python", tmp_path, "--replace").returncode == 4
