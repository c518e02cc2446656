"""What several tests of this folder use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_orchestration_tests.integration.postgres_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    folder = Path("/var/tmp", f"forge-test-pg-{os.getpid()}")
    folder.mkdir()
    try:
        one = Server(folder)
        one.start()
        yield one
        one.stop()
    finally:
        shutil.rmtree(folder)
