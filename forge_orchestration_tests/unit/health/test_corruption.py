"""What is damaged is told apart from what is only wrong, or cannot be looked at."""

from __future__ import annotations

from pathlib import Path

import forge_orchestration
from forge_orchestration.executions.folder import write_atomically
from forge_orchestration.health.checks import runtime_check
from forge_orchestration.health.databases import sqlite_checks
from forge_orchestration.health.storage import storage_checks
from forge_orchestration.runtimes import catalog
from forge_orchestration.settings import Settings, load_settings
from forge_orchestration_tests.conftest import copy_runtime


def test_a_runtime(forge_home: Path, tmp_path: Path, settings: Settings) -> None:
    copy_runtime(forge_home, tmp_path / "h")
    home = load_settings(tmp_path / "h")
    assert not runtime_check("forge-python", home).corruption
    assert not runtime_check("forge-python", settings).corruption, "what is not built is not damaged"
    build = catalog.build_folder(catalog.load_definition("forge-python", home), home)
    write_atomically(build / "quarantine", b"wrong numbers\n")
    quarantined = runtime_check("forge-python", home)
    assert not quarantined.passed and not quarantined.corruption
    (build / "quarantine").unlink()
    (build / "prefix/evil.pth").touch()
    assert runtime_check("forge-python", home).corruption


def test_a_database(tmp_path: Path) -> None:
    (gone,) = sqlite_checks("lab", tmp_path / "gone.db", full=False)
    assert not gone.passed and not gone.corruption
    (tmp_path / "rotten.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    (rotten,) = sqlite_checks("lab", tmp_path / "rotten.db", full=False)
    assert not rotten.passed and rotten.corruption


def test_an_output(forge_home: Path) -> None:
    record = forge_orchestration.run(["sh", "-c", "echo 1 > $FORGE_OUTPUTS/one"], limits={"memory": "64MiB", "scratch": "8MiB"})
    output = Path(record.folder, "outputs/one")
    try:
        output.write_text("2\n")
        found = {one.name: one for one in storage_checks(load_settings(forge_home), full=True)}
        assert found["outputs"].corruption and not found["integrity"].corruption
    finally:
        output.write_text("1\n")
