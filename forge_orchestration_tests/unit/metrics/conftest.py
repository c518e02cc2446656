"""Executions in the index, as many as a test wants, without running any."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from forge_orchestration.executions.store import Store
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.settings import Settings
from forge_orchestration_tests.unit.executions.test_statistics import record

Index = Callable[..., None]
HOSTILE = '<img src=x onerror="document.title=\'broken\'">\n# HELP forge_executions_total no\n\\"}\t\x1b[31m\u202e\ud7ff💥'


@pytest.fixture(autouse=True)
def nobody_else_runs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # the ledger of who runs is the host's: other tests' executions are in it
    monkeypatch.setattr("forge_orchestration.executors.admission.LEDGERS", settings.home / "no places")


@pytest.fixture
def index(settings: Settings) -> Index:
    """Puts records into the store's index, and nothing anywhere else."""

    def put(*records: ExecutionRecord) -> None:
        store = Store(settings.store_path)
        for one in records:
            store.save(one)
        store.close()

    return put


__all__ = ["record"]
