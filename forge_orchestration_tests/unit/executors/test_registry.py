"""Which executors there are."""

from __future__ import annotations

import pytest

from forge_orchestration.errors import SpecError
from forge_orchestration.executors.local import LocalExecutor
from forge_orchestration.executors.registry import executor_names, make_executor
from forge_orchestration.model.limits import LIMIT_KEYS
from forge_orchestration.settings import Settings


def test_local_is_always_there(settings: Settings) -> None:
    assert executor_names()[0] == "local"
    made = make_executor("local", settings)
    assert isinstance(made, LocalExecutor)
    assert made.capabilities.limits == set(LIMIT_KEYS)


@pytest.mark.parametrize("name", ["nosuch", "", "Local", "../local", "x" * 5000])
def test_an_unknown_one_is_named_with_those_that_exist(settings: Settings, name: str) -> None:
    with pytest.raises(SpecError, match="no executor") as caught:
        make_executor(name, settings)
    assert "local" in caught.value.hint and len(str(caught.value)) < 300
