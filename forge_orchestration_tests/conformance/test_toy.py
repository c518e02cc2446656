"""The conformance suite on an executor of another package: one file, which its entry point makes known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_orchestration.testing.conformance import *  # noqa: F403
from forge_orchestration_tests import conftest
from forge_orchestration_tests.conftest import Forge, copy_runtime, prerequisite

pytestmark = pytest.mark.together
MODULE = Path(__file__).with_name("toy_executor.py")


@pytest.fixture(scope="module")
def executor_name() -> str:
    return "toy"


@pytest.fixture(scope="module")
def deployment(forge_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    prerequisite(os.geteuid() == 0, "the toy lets executions have uids of their own, as root")
    folder = tmp_path_factory.mktemp("toy")
    package = folder / "forge_toy-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: forge-toy\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[forge_orchestration.executors]\ntoy = forge_toy:ToyExecutor\n")
    (folder / "forge_toy.py").symlink_to(MODULE)
    home = folder / "home"
    home.mkdir(mode=0o700)
    conftest._homes.append(home)
    copy_runtime(forge_home, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
        yield home


def test_it_is_small() -> None:
    assert len(MODULE.read_text().splitlines()) < 250


def test_it_is_listed(deployment: Path) -> None:
    assert "toy: available" in Forge(deployment)("executors", "list").stdout
