"""A real PostgreSQL server: whole, then with a page of a table overwritten on the disk."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.health.databases import database_checks
from forge_orchestration.model.health import CheckResult
from forge_orchestration.settings import Settings, load_settings
from forge_orchestration_tests.conftest import host_program, prerequisite

PAGE = 8192


class Server:
    """One server in a folder of its own; started by root it belongs to `postgres` or `nobody`, as it must."""

    def __init__(self, folder: Path) -> None:
        host_program("psql", "postgresql")
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        prerequisite(bool(programs), "PostgreSQL is not installed: sudo apt-get install postgresql")
        self.folder, self.data, self._programs = folder, folder / "data", programs[-1].parent
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:
            user = next(user for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody"))
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.url = f"postgresql://bench@/postgres?host={folder}"
        self.run("initdb", "-D", self.data, "-A", "trust", "-U", "bench", "--data-checksums", "--no-sync")

    def run(self, program: str, *words: str | Path) -> str:
        done = subprocess.run(
            [self._programs / program, *words], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if program == "psql" else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, text=True, check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, **self._user,  # type: ignore[call-overload]
        )  # fmt: skip
        return str(done.stdout)

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"
        self.run("pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "-o", options, "start")

    def stop(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def ask(self, sql: str) -> str:
        return self.run("psql", "-qAtc", sql, self.url).strip()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(tmp_path)


@pytest.fixture
def server() -> Iterator[Server]:
    folder = Path("/var/tmp", f"forge-test-pg-{os.getpid()}")
    folder.mkdir()
    try:
        one = Server(folder)
        one.start()
        yield one
        one.stop()
    finally:
        shutil.rmtree(folder)


def checked(settings: Settings, server: Server, *, full: bool = True) -> dict[str, CheckResult]:
    settings = msgspec.structs.replace(settings, protected_databases={"lab": server.url})
    return {result.name: result for result in database_checks(settings, full=full)}


def test_a_damaged_table_is_found_and_named(settings: Settings, server: Server) -> None:
    without = checked(settings, server)["integrity"]
    assert not without.passed and "suspect" in without.finding and "CREATE EXTENSION amcheck" in without.remedy, without
    server.ask("CREATE EXTENSION amcheck")
    server.ask("CREATE TABLE counts (gene text PRIMARY KEY, number int)")
    server.ask("INSERT INTO counts SELECT 'gene ' || n, n FROM generate_series(1, 20000) n")
    server.ask("CHECKPOINT")
    for full in (False, True):
        whole = checked(settings, server, full=full)
        assert {name: result.passed for name, result in whole.items()} == dict.fromkeys(
            ("connection", "checksums", "replication_slots", "checksum_failures", "integrity"), True
        ), [result.finding for result in whole.values()]
    table = server.data / server.ask("SELECT pg_relation_filepath('counts')")
    server.stop()
    with open(table, "r+b") as file:
        file.seek(3 * PAGE + 512)
        file.write(b"\xff" * 1024)
    server.start()
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
