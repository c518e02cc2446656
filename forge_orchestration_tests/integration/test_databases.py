"""A real PostgreSQL server: whole, then with a page of a table overwritten on the disk."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest

from forge_orchestration.health.databases import database_checks
from forge_orchestration.model.health import CheckResult
from forge_orchestration.settings import Settings, load_settings
from forge_orchestration_tests.integration.postgres_server import Server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(tmp_path)


def checked(settings: Settings, server: Server, *, full: bool = True) -> dict[str, CheckResult]:
    settings = msgspec.structs.replace(settings, protected_databases={"lab": server.url})
    return {result.name: result for result in database_checks(settings, full=full)}


def test_a_damaged_table_is_found_and_named(settings: Settings, server: Server) -> None:
    without = checked(settings, server)["integrity"]
    assert not without.passed and "suspect" in without.finding and "CREATE EXTENSION amcheck" in without.remedy, without
    server.ask("CREATE EXTENSION amcheck")
    server.ask("CREATE TABLE counts (gene text PRIMARY KEY, number int)")
    server.ask("INSERT INTO counts SELECT 'gene ' || n, n FROM generate_series(1, 20000) n")
    for full in (False, True):
        whole = checked(settings, server, full=full)
        assert {name: result.passed for name, result in whole.items()} == dict.fromkeys(
            ("connection", "checksums", "replication_slots", "checksum_failures", "integrity"), True
        ), [result.finding for result in whole.values()]
    server.damage("counts")
    broken = checked(settings, server)
    assert broken["connection"].passed
    damage = broken["integrity"]
    assert not damage.passed and damage.severity == "error" and "corrupt" in damage.finding and "suspect" not in damage.finding
    assert "counts" in damage.finding, damage.finding
    server.stop()
    gone = checked(settings, server)
    assert list(gone) == ["connection"] and gone["connection"].severity == "warning" and "suspect" in gone["connection"].finding


def test_a_slot_that_nobody_reads_is_a_warning(settings: Settings, server: Server) -> None:
    server.ask("SELECT pg_create_physical_replication_slot('left_behind')")
    slots = checked(settings, server, full=False)["replication_slots"]
    assert not slots.passed and slots.severity == "warning" and "left_behind" in slots.finding and "left_behind" in slots.remedy


def test_a_password_in_the_url_opens_and_is_never_shown(settings: Settings, server: Server) -> None:
    password = "p@ss/w:rd %hunter2"
    server.ask("CREATE EXTENSION amcheck")
    server.ask(f"CREATE ROLE reader SUPERUSER LOGIN PASSWORD '{password}'")
    rules = server.data / "pg_hba.conf"
    rules.write_text("local all reader scram-sha-256\n" + rules.read_text())
    server.ask("SELECT pg_reload_conf()")
    for written, passed in ((quote(password, safe=""), True), ("hunter2wrong", False)):
        url = server.url.replace("bench@", f"reader:{written}@")
        results = database_checks(msgspec.structs.replace(settings, protected_databases={"lab": url}), full=False)
        assert results[0].name == "connection" and results[0].passed is passed, results[0].finding
        assert passed is any(result.name == "integrity" and result.passed for result in results)
        assert "hunter2" not in str(results)
    assert "authentication failed" in results[0].finding
