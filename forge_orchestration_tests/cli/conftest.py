"""What the command's tests share: what a refusal looks like, and that it left nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from forge_orchestration.executions.store import Store
from forge_orchestration_tests.conftest import Forge

SMALL = ("--memory", "64MiB", "--pids", "20", "--scratch", "4MiB")  # starts as fast as can be
Refused = Callable[..., str]


def sentence(done: subprocess.CompletedProcess[str], status: int, *words: str) -> str:
    """The one line on stderr of a command that was refused with `status`."""
    assert done.returncode == status, f"{done.returncode}: {done.stdout[:500]}{done.stderr[:2000]}"
    assert done.stdout == ""
    assert done.stderr.startswith("forge: ") and done.stderr.endswith("\n") and done.stderr.count("\n") == 1, done.stderr
    line = done.stderr.rstrip("\n")
    assert line.isprintable() and "Traceback" not in line and "internal error" not in line, line
    assert len(line) < 2000
    for word in words:
        assert word in line, line
    return line


def traces(forge: Forge) -> tuple[set[str], set[str], set[str]]:
    """Folders, rows, and what lies in scratch."""
    rows: set[str] = set()
    if (forge.home / "store.db").is_file():
        store = Store(forge.home / "store.db")
        rows = store.ids()
        store.close()
    scratch = forge.home / "scratch"
    return forge.executions(), rows, set(os.listdir(scratch)) - {"templates"} if scratch.is_dir() else set()


@pytest.fixture
def refused(forge: Forge) -> Iterator[Refused]:
    """Runs a command that must be refused with one sentence, and looks that it left nothing behind."""
    before = traces(forge)

    def run(status: int, *arguments: object, words: tuple[str, ...] = (), env: dict[str, str] | None = None) -> str:
        return sentence(forge(*map(str, arguments), env=env), status, *words)

    yield run
    assert traces(forge) == before
