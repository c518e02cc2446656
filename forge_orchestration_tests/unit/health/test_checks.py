"""`forge doctor`'s checks of runtimes, and what becomes of a check that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge_orchestration.errors import HostError
from forge_orchestration.executions.store import Store
from forge_orchestration.health import checks
from forge_orchestration.runtimes import catalog
from forge_orchestration.settings import Settings, load_settings
from forge_orchestration_tests.conftest import copy_runtime


@pytest.fixture
def home(forge_home: Path, tmp_path: Path) -> Settings:
    copy_runtime(forge_home, tmp_path / "h")
    return load_settings(tmp_path / "h")


def test_a_runtime_that_is_as_it_was_sealed(home: Settings) -> None:
    result = checks.runtime_check("forge-python", home)
    assert result.passed and "files as sealed" in result.finding and not result.remedy


def test_one_that_is_not_built_is_a_warning_with_its_remedy(settings: Settings) -> None:
    result = checks.runtime_check("forge-python", settings)
    assert (result.passed, result.severity, result.remedy) == (False, "warning", "forge runtimes build forge-python")


def test_one_that_was_edited_is_an_error_that_names_the_file(home: Settings) -> None:
    build = catalog.build_folder(catalog.load_definition("forge-python", home), home)
    (build / "prefix/evil.pth").touch()
    result = checks.runtime_check("forge-python", home)
    assert (result.passed, result.severity) == (False, "error") and "evil.pth was added" in result.finding
    assert "forge runtimes repair" in result.remedy


@pytest.mark.parametrize("error", [HostError("No.", "Do this."), OSError(13, "Permission denied", "/x")])
def test_an_attempt_that_fails_is_a_finding_and_no_traceback(error: Exception) -> None:
    def attempt() -> str:
        raise error

    result = checks._attempt("x", attempt)
    assert (result.name, result.target, result.passed) == ("x", "host", False) and result.finding and result.remedy


def test_only_what_is_asked_for_is_checked(home: Settings) -> None:
    assert {result.target for result in checks.run_checks(home, ["forge-python"])} == {"forge-python"}
    assert checks.run_checks(home, ["nosuch"]) == []


def test_this_host(home: Settings) -> None:
    results = {result.name: result for result in checks.host_checks(home)}
    assert {"bubblewrap", "namespaces", "system_calls", "identity", "cgroups", "scratch", "capacity", "disk", "memory"} <= set(
        results
    )
    assert [result.finding for result in results.values() if not result.passed and result.severity == "error"] == []
    assert {"filesystem", "memory_limit", "keyring", "scratch_limit"} <= set(results)
    # the trial leaves nothing, nor does one that cannot be made
    assert list(home.executions_dir.iterdir()) == [] and Store(home.store_path).list(limit=10) == []


def test_a_trial_that_fails_is_told_and_leaves_nothing(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_orchestration.sandbox.view.system_view", lambda: (("/nonexistent",), {}))
    (line,) = checks._protections(home, "")
    assert (line.name, line.passed, line.severity) == ("trial", False, "error") and "/nonexistent" in line.finding
    assert list(home.executions_dir.iterdir()) == [] and Store(home.store_path).list(limit=10) == []
