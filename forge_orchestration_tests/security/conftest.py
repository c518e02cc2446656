"""One arena for the whole corpus: its neighbour lives from the first attack to the last."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_orchestration_tests.conftest import prerequisite
from forge_orchestration_tests.security.arena import Arena


@pytest.fixture(scope="package")
def arena(forge_home: Path) -> Iterator[Arena]:
    """Runs attacks."""
    prerequisite(platform.machine() == "x86_64", "the attacks make system calls by the numbers of x86_64")
    made = Arena(forge_home, forge_home.parent / f"arena-{os.getpid()}")
    yield made
    made.close()
