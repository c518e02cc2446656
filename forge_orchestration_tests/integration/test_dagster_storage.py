"""Where Dagster's own storage lies, by what is set in the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef

from forge_orchestration_tests.integration.dagster_support import REPOSITORY


@pytest.mark.parametrize(("variable", "below"), [("FORGE_HOME", ""), ("XDG_DATA_HOME", "forge"), ("HOME", ".local/share/forge")])
def test_storage_follows_forge_home_set_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, below: str) -> None:
    for name in ("FORGE_HOME", "XDG_DATA_HOME", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "it's here"))
    expected = tmp_path / "it's here" / below / "dagster"
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(elsewhere), config_dir=str(REPOSITORY))) as instance:
        assert instance.root_directory == str(expected)
        assert instance.storage_directory() == str(expected / "storage")
        logs = instance.compute_log_manager
        assert logs.get_captured_local_path(["run", "compute_logs", "key"], "out").startswith(str(expected))  # type: ignore[attr-defined]
        assert logs.polling_timeout < 1  # type: ignore[attr-defined]
        assert (expected / "history/runs.db").is_file()
        assert not instance.telemetry_enabled
    assert expected.stat().st_mode & 0o077 == 0
    assert expected.parent.stat().st_mode & 0o077 == 0
    assert list(elsewhere.iterdir()) == []


def test_what_dagster_yaml_configures_itself_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "forge"))
    own = tmp_path / "own"
    text = (REPOSITORY / "dagster.yaml").read_text() + f"\nstorage: {{sqlite: {{base_dir: '{own}'}}}}\n"
    (tmp_path / "dagster.yaml").write_text(text)
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        assert instance.run_storage.get_runs() == []
    assert (own / "history/runs.db").is_file()
    assert not (tmp_path / "forge/dagster/history").exists()
