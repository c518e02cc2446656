"""Runtimes of kind image, with a real container engine of the test's own: its data, socket and cgroups are removed at the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_orchestration_tests import conftest
from forge_orchestration_tests.conftest import Forge
from forge_orchestration_tests.container_engine import import_busybox, running_engine

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """The URL of an engine that runs."""
    with running_engine() as started:
        yield started.url


@pytest.fixture(scope="module")
def image(engine: str) -> str:
    """The id of an image that holds busybox alone."""
    return import_busybox(engine)


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[Forge]:
    home = tmp_path_factory.mktemp("image") / "home"
    home.mkdir(mode=0o700)
    (home / "settings.toml").write_text(f"docker_host = {json.dumps(engine)}\nverify_max_age_s = 0\n")
    conftest._homes.append(home)
    yield Forge(home)


def define(forge: Forge, name: str, image: str, self_test: list[str], limits: str = "") -> None:
    folder = forge.home / "definitions" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runtime.toml").write_text(
        f'kind = "image"\nimage = "{image}"\nself_test = {json.dumps(self_test)}\nlimits = {{{limits}}}\n'
    )


def test_an_image_is_built_tested_and_missed_when_it_is_gone(forge: Forge, engine: str, image: str) -> None:
    import docker

    added = forge("runtimes", "add", "boxed", "--image", image)
    assert added.returncode == 0, added.stderr
    built = forge("runtimes", "build", "boxed")
    assert built.returncode == 0, built.stderr
    shown = json.loads(forge("runtimes", "show", "boxed", "--json").stdout)
    assert shown["state"] == "ready" and shown["build"]["packages"] == {"image": image}
    assert forge("runtimes", "verify", "--full", "boxed").returncode == 0
    refused = forge("exec", "--runtime", "boxed", "--", "true")
    assert refused.returncode == 2 and "'local' cannot use runtime 'boxed' of kind image" in refused.stderr
    with contextlib.closing(docker.DockerClient(base_url=engine)) as client:
        saved = b"".join(client.images.get(image).save(named="forge-test:1"))
        assert not client.containers.list(all=True)
        client.images.remove("forge-test:1")
        try:
            found = forge("runtimes", "verify", "boxed")
            assert found.returncode == 4 and f"the image {image} is no longer there" in found.stdout
            missing = forge("runtimes", "repair", "boxed")
            assert missing.returncode == 4 and "has no image" in missing.stderr
        finally:
            client.images.load(saved)
    assert forge("runtimes", "verify", "boxed").returncode == 0


def test_a_self_test_has_no_rights(forge: Forge, image: str) -> None:
    define(
        forge,
        "tested",
        image,
        ["/bin/sh", "-c", "test $(id -u) = 65534 && ! touch /x 2>/dev/null && touch /tmp/x && ! test -e /sys/class/net/eth0"],
    )
    built = forge("runtimes", "build", "tested")
    assert built.returncode == 0, built.stderr


def test_its_limits_are_the_kernels(forge: Forge, image: str) -> None:
    """Read inside, from the cgroup of the container."""
    read = "$(cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max)"
    define(forge, "limited", image, ["/bin/sh", "-c", f"test {read} = {64 << 20}"], 'memory = "64MiB"')
    built = forge("runtimes", "build", "limited")
    assert built.returncode == 0, built.stderr


def test_a_self_test_that_does_not_end_is_ended(forge: Forge, engine: str, image: str) -> None:
    import docker

    define(forge, "endless", image, ["/bin/sleep", "600"], 'wall_time = "2s"')
    built = forge("runtimes", "build", "endless")
    assert built.returncode == 4 and "did not end within 2 s" in built.stderr, built.stderr
    with contextlib.closing(docker.DockerClient(base_url=engine)) as client:
        assert client.containers.list(all=True) == []


@pytest.mark.parametrize(
    ("image_of", "self_test", "words"),
    [
        (lambda image: image, ["/bin/sh", "-c", "echo it is broken >&2; exit 3"], "exited with status 3: it is broken"),
        (lambda image: image, ["/bin/nothing"], "No container of it can be run"),
        (lambda image: "sha256:" + "0" * 64, ["true"], "has no image"),
        (lambda image: "127.0.0.1:9/nothing@sha256:" + "0" * 64, ["true"], "cannot be pulled"),
        (lambda image: "forge-test:1", ["true"], "not named by its digest"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_a_sentence(forge: Forge, image: str, image_of, self_test: list[str], words: str) -> None:
    define(forge, "bad", image_of(image), self_test)
    built = forge("runtimes", "build", "bad", timeout=200)
    assert built.returncode == 4 and words in built.stderr and "Traceback" not in built.stderr, built.stderr


def test_an_engine_that_is_not_there(tmp_path: Path, image: str) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "settings.toml").write_text('docker_host = "unix:///nowhere/docker.sock"\n')
    other = Forge(home)
    assert other("runtimes", "add", "boxed", "--image", image).returncode == 0
    built = other("runtimes", "build", "boxed")
    assert built.returncode == 4 and "No container engine answers at unix:///nowhere/docker.sock" in built.stderr
