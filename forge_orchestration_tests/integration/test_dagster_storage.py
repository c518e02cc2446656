"""Where Dagster's own storage lies, by what is set in the environment."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef

from forge_orchestration.orchestration.instance import EXIT_WITHOUT_STORAGE, ForgeInstance
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


class GivenUp(Exception):
    """As dagster-postgres has it around the driver's error."""


def test_a_worker_that_cannot_store_an_event_ends_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "forge"))
    ended: list[int] = []
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path), config_dir=str(REPOSITORY))) as instance:
        assert isinstance(instance, ForgeInstance)
        run = instance.create_run_for_job(dg.job(name="any")(lambda: None))
        away = sqlalchemy.exc.OperationalError("INSERT", {}, OSError("no server"))

        def fail(event: dg.EventLogEntry) -> None:
            raise GivenUp from (ValueError("wrong event") if "wrong" in event.message else away)

        monkeypatch.setattr(instance.event_log_storage, "store_event", fail)
        monkeypatch.setattr(os, "_exit", ended.append)
        line = dg.EventLogEntry(
            error_info=None, level=20, user_message="a line", run_id=run.run_id, timestamp=1.0, job_name="any", dagster_event=None
        )
        with pytest.raises(GivenUp):
            instance.report_engine_event("begun", run)
        instance.ends_with_its_storage = True
        with pytest.raises(GivenUp):
            instance.report_engine_event("wrong", run)
        with pytest.raises(GivenUp):
            instance.handle_new_event(line)
        assert ended == []
        with pytest.raises(GivenUp):
            instance.report_engine_event("begun", run)
    assert ended == [EXIT_WITHOUT_STORAGE]
