"""What several tests of this folder use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from forge_orchestration_tests.integration.postgres_server import Server, running_server


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as one:
        yield one
