"""The suite of `forge_orchestration.testing`, for the executor `docker`, with a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_orchestration.testing.conformance import *  # noqa: F403
from forge_orchestration_tests import conftest
from forge_orchestration_tests.conftest import copy_runtime
from forge_orchestration_tests.container_engine import running_engine

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def executor_name() -> str:
    return "docker"


@pytest.fixture(scope="module")
def deployment(forge_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("docker") / "home with a space"
    home.mkdir(mode=0o700)
    conftest._homes.append(home)
    copy_runtime(forge_home, home)
    with running_engine() as engine:
        (home / "settings.toml").write_text(f"docker_host = {json.dumps(engine.url)}\n")
        yield home
