"""The suite of `forge_orchestration.testing`, for the executor `local`."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge_orchestration.testing.conformance import *  # noqa: F403

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def executor_name() -> str:
    return "local"


@pytest.fixture(scope="module")
def deployment(forge_home: Path) -> Path:
    return forge_home
