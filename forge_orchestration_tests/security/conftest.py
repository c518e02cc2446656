"""One arena for the whole corpus: its neighbour lives from the first attack to the last."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_orchestration_tests.conftest import prerequisite
from forge_orchestration_tests.security.arena import Arena

# a few of each kind, for machines on which the whole corpus takes too long
SMOKE = frozenset({
    "test_read.py::test_refused[host_files]", "test_read.py::test_refused[running_neighbour]", "test_read.py::test_processes_of_the_host",
    "test_write.py::test_refused[inputs]", "test_write.py::test_refused[hard_links]", "test_write.py::test_kernel_settings",
    "test_escape.py::test_refused[mounts]", "test_escape.py::test_refused[new_namespaces]", "test_escape.py::test_refused[release_agent]",
    "test_escape.py::test_set_uid_programs", "test_escape.py::test_foreign_architecture[foreign_int80]",
    "test_reach.py::test_refused[tcp_of_host]", "test_reach.py::test_refused[abstract_sockets]",
    "test_reach.py::test_refused[named_sockets]", "test_exhaust.py::test_memory[heap]",
    "test_exhaust.py::test_memory[shared_memory_folder]", "test_exhaust.py::test_processes[plain]",
    "test_exhaust.py::test_disk_space[/forge/scratch]", "test_outlive.py::test_left_behind[daemon]",
    "test_outlive.py::test_without_end[deaf]", "test_deceive.py::test_links", "test_deceive.py::test_broken_messages[no JSON]",
})  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the sample, so that `-m smoke` runs it."""
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here and f"{item.path.name}::{item.name}" in SMOKE:
            item.add_marker(pytest.mark.smoke)


@pytest.fixture(scope="package")
def arena(forge_home: Path) -> Iterator[Arena]:
    """Runs attacks."""
    prerequisite(platform.machine() == "x86_64", "the attacks make system calls by the numbers of x86_64")
    made = Arena(forge_home, forge_home.parent / f"arena-{os.getpid()}")
    yield made
    made.close()
