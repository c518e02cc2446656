"""`forge metrics` and `forge dashboard` after real executions: what they say is what the records and the checks say."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families

import forge_orchestration
from forge_orchestration.executions.store import Store
from forge_orchestration.model.reasons import EndReason
from forge_orchestration_tests import conftest
from forge_orchestration_tests.cli.conftest import SMALL, sentence
from forge_orchestration_tests.conftest import Forge, host_program, wait_until
from forge_orchestration_tests.unit.executions.test_statistics import record
from forge_orchestration_tests.unit.metrics.conftest import HOSTILE

pytestmark = pytest.mark.together

SCHEMA = Path(__file__).parents[2] / "docs" / "quest-status.schema.json"
ENDS = {
    "completed": ("--", "true"),
    "nonzero_exit": ("--", "sh", "-c", "exit 3"),
    "memory": ("--", "python", "-c", "x = b'a' * 10**9"),
    "wall_time": ("--wall-time", "0.3s", "--grace", "0s", "--", "sleep", "60"),
    "signaled": ("--", "sh", "-c", "kill -KILL $$"),
    "scratch": ("--", "sh", "-c", "head -c 9000000 /dev/zero > big"),
    "output_rejected": ("--output", "none.csv", "--", "true"),
}


def samples(forge: Forge) -> dict[str, dict[tuple[str, ...], float]]:
    """Value by label values in the order of the labels' names, by the sample's name."""
    done = forge("metrics")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(done.stdout):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


@contextlib.contextmanager
def dashboard(forge: Forge, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with forge.started("dashboard", "--port", "0", *arguments) as process:
        line = process.stdout.readline()
        assert line.startswith("Quest view: http://"), line + process.stderr.read()
        yield line.split()[2], process
        if process.poll() is None:
            process.terminate()
            assert process.wait(20) == 0


def get(url: str) -> str:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        connection.request("GET", parts.path)
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def home(forge_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Forge:
    home = tmp_path_factory.mktemp("metrics") / "home"
    home.mkdir(mode=0o700)
    conftest._homes.append(home)
    conftest.copy_runtime(forge_home, home)
    forge = Forge(home)
    for reason, words in ENDS.items():
        assert forge.record("exec", *SMALL, *words).end_reason == reason
    forge.record("exec", *SMALL, *ENDS["memory"])
    return forge


class TestExecutions:
    def test_the_numbers_are_those_of_the_records(self, home: Forge) -> None:
        records = [home.read_record(one) for one in home.executions()]
        found = samples(home)
        assert found["forge_executions_total"] == Counter(
            (one.analysis, str(one.end_reason), one.executor, one.runtime.name, str(one.status)) for one in records
        )
        assert found["forge_executions_total"]["exec", "memory", "local", "forge-python", "failed"] == 2
        walls = [one.usage.wall_s.value for one in records]
        assert found["forge_execution_wall_seconds_count"] == {("exec", "forge-python"): len(records)}
        assert found["forge_execution_wall_seconds_sum"]["exec", "forge-python"] == pytest.approx(sum(walls))
        at_most_1 = found["forge_execution_wall_seconds_bucket"]["exec", "1.0", "forge-python"]
        assert at_most_1 == sum(wall <= 1 for wall in walls)
        memory = [one.usage.peak_memory_bytes.value / one.enforced["memory_bytes"].value for one in records]
        assert found["forge_execution_memory_use_ratio_sum"]["exec",] == pytest.approx(sum(memory))
        over = (
            found["forge_execution_memory_use_ratio_count"]["exec",]
            - found["forge_execution_memory_use_ratio_bucket"]["exec", "0.9"]
        )
        assert over == sum(ratio > 0.9 for ratio in memory) >= 2
        cpu = sum(
            (one.usage.cpu_user_s.value + one.usage.cpu_system_s.value) / (one.usage.wall_s.value * one.enforced["cpus"].value)
            for one in records
        )
        assert found["forge_execution_cpu_use_ratio_sum"]["exec",] == pytest.approx(cpu)

    def test_a_store_that_is_made_again_says_the_same(self, home: Forge) -> None:
        before = samples(home)
        for name in ("store.db", "store.db-wal", "store.db-shm"):
            (home.home / name).unlink(missing_ok=True)
        assert home("gc").returncode == 0
        after = samples(home)
        for name in before:
            if name.startswith("forge_execution"):
                assert after[name] == pytest.approx(before[name]), name

    def test_what_runs_is_seen_while_it_runs(self, home: Forge) -> None:
        with home.started("exec", *SMALL, "--", "sh", "-c", "echo ready; sleep 60") as running:
            assert running.stdout.readline() == "ready\n"
            wait_until("one that runs", lambda: samples(home)["forge_active_executions"]["running",] == 1)
            assert samples(home)["forge_claimed_memory_bytes"][()] >= 64 * 2**20
            running.terminate()
            assert running.wait(20) == 15
        assert samples(home)["forge_active_executions"]["running",] == 0

    def test_the_frame_has_them_all(self, home: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORGE_HOME", str(home.home))
        frame = forge_orchestration.executions_frame(analysis="exec").set_index("execution_id")
        assert set(frame.index) == home.executions()
        for execution_id, row in frame.iterrows():
            one = home.read_record(str(execution_id))
            assert (row.status, row.end_reason, row.message) == (one.status, one.end_reason, one.message)
            assert row.wall_s == one.usage.wall_s.value and row.memory_limit_bytes == one.enforced["memory_bytes"].value
            assert row.ended_at.timestamp() == pytest.approx(one.ended_at, abs=1e-5)

    def test_the_dashboard_says_the_same(self, home: Forge) -> None:
        with dashboard(home) as (url, _):
            status = json.loads(get(f"{url}api/quests/status"))
            jsonschema.validate(status, json.loads(SCHEMA.read_text()))
            assert "forge_executions_total{" in get(f"{url}metrics")
            assert get(url).startswith("<!doctype html>")
        failed = [one for one in map(home.read_record, home.executions()) if one.status == "failed"]
        assert {one["execution_id"]: one["message"] for one in status["last_failures"]} == {
            one.execution_id: one.message for one in failed
        }
        assert status["last_24h"]["by_end_reason"].items() >= {"memory": 2, "wall_time": 1, "completed": 1}.items()


class TestHealth:
    def test_damage_is_told_until_it_is_repaired(self, other_forge: Forge) -> None:
        forge = other_forge
        assert forge("doctor").returncode == 0
        found = samples(forge)
        assert found["forge_check_passed"]["bubblewrap", "host"] == 1 and found["forge_runtime_ready"]["forge-python",] == 1
        build = Path(json.loads(forge("runtimes", "show", "forge-python", "--json").stdout)["prefix"])
        (build / "lib" / "evil.pth").write_text("import os")

        assert forge("runtimes", "verify", "--full", "forge-python").returncode == 4
        found = samples(forge)
        assert found["forge_check_passed"]["content", "forge-python"] == 0
        assert found["forge_corruption_findings"]["forge-python",] == 1 and found["forge_failed_checks"]["error",] == 1
        assert found["forge_runtime_ready"]["forge-python",] == 0 and found["forge_runtimes"]["unhealthy",] == 1
        with dashboard(forge) as (url, _):
            status = json.loads(get(f"{url}api/quests/status"))
        assert status["health"]["overall"] == "unhealthy" and "evil.pth" in status["corruption"][0]["finding"]

        assert forge("runtimes", "repair", "forge-python").returncode == 0
        found = samples(forge)
        assert (
            found["forge_check_passed"]["seal", "forge-python"] == 1
            and ("content", "forge-python") not in found["forge_check_passed"]
        )
        assert found["forge_corruption_findings"]["forge-python",] == 0 and found["forge_runtime_ready"]["forge-python",] == 1

    def test_health_keeps_what_it_finds(self, other_forge: Forge) -> None:
        (other_forge.home / "rotten.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
        (other_forge.home / "settings.toml").write_text(
            f"[protected_databases]\nlab = {json.dumps(f'sqlite:///{other_forge.home}/rotten.db')}"
        )
        assert other_forge("health").returncode == 3
        found = samples(other_forge)
        assert found["forge_corruption_findings"]["lab",] == 1 and found["forge_check_passed"]["outputs", "storage"] == 1

    def test_what_cannot_be_kept_does_not_keep_a_doctor_from_speaking(self, other_forge: Forge) -> None:
        (other_forge.home / "health.json").mkdir()
        done = other_forge("doctor")
        assert done.returncode == 0 and "bubblewrap" in done.stdout
        assert done.stderr.startswith("forge: What was found is not kept") and done.stderr.count("\n") == 1


class TestDashboard:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_with_nothing_more_to_say(self, forge: Forge, number: signal.Signals) -> None:
        with dashboard(forge) as (url, process):
            get(f"{url}api/quests/status")
            process.send_signal(number)
            assert process.wait(20) == 0
            assert (process.stdout.read(), process.stderr.read()) == ("", "")

    def test_not_where_others_can_reach_it(self, forge: Forge) -> None:
        sentence(forge("dashboard", "--host", "0.0.0.0"), 2, "--allow-remote")
        with dashboard(forge, "--host", "0.0.0.0", "--allow-remote") as (url, _):
            assert "forge_build_info" in get(f"http://127.0.0.1:{urlsplit(url).port}/metrics")

    def test_not_where_somebody_listens(self, forge: Forge) -> None:
        with dashboard(forge) as (url, _):
            sentence(forge("dashboard", "--port", str(urlsplit(url).port)), 3, "in use", "--port")

    @pytest.mark.parametrize("port", ["-1", "65536", "http"])
    def test_not_at_a_port_that_is_none(self, forge: Forge, port: str) -> None:
        sentence(forge("dashboard", f"--port={port}"), 2, "port")

    def test_not_with_settings_that_are_wrong(self, other_forge: Forge) -> None:
        (other_forge.home / "settings.toml").write_text("[metrics]\nmax_label_values = 0")
        sentence(other_forge("dashboard"), 2, "max_label_values")
        sentence(other_forge("metrics"), 2, "max_label_values")

    def test_hostile_words_are_words_in_a_browser(self, other_forge: Forge, tmp_path: Path) -> None:
        """A real one, which runs the page's script: what an analysis says becomes text, and its markup never comes to be."""
        browser = host_program("chromium", "chromium")
        store = Store(other_forge.home / "store.db")
        store.save(record(1, EndReason.MEMORY, analysis=HOSTILE, message=f"<script>document.title = 'broken'</script>{HOSTILE}"))
        store.close()
        with dashboard(other_forge) as (url, _):
            done = subprocess.run(
                [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}/profile",
                 "--virtual-time-budget=4000", "--dump-dom", url],
                env=os.environ | {"HOME": str(tmp_path), "DBUS_SESSION_BUS_ADDRESS": "disabled:"}, stdin=subprocess.DEVNULL,
                capture_output=True, encoding="utf-8", timeout=120,
            )  # fmt: skip
        title = re.search(r"<title>(.*?)</title>", done.stdout)
        assert title is not None and title[1].startswith("Forge Quest: "), done.stdout[:2000] + done.stderr[-2000:]
        body = done.stdout[done.stdout.index("<main>") : done.stdout.index("</main>")]
        assert "&lt;img src=x onerror=" in body and "&lt;script&gt;document.title" in body and record(1).execution_id in body
        assert "<img" not in body and "<script" not in body
