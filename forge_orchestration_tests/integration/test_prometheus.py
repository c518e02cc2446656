"""A real Prometheus: its own linter finds nothing, and it scrapes the dashboard and answers from what it has read."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from forge_orchestration_tests.cli.conftest import SMALL
from forge_orchestration_tests.conftest import Forge, host_program, wait_until

pytestmark = pytest.mark.together

CONFIGURATION = """
global: {scrape_interval: 1s}
scrape_configs:
  - job_name: forge
    static_configs: [{targets: ["%s"]}]
"""


def test_its_linter_finds_nothing(forge: Forge) -> None:
    promtool = host_program("promtool", "prometheus")
    forge.record("exec", *SMALL, "--", "true")
    assert forge("doctor").returncode == 0
    text = forge("metrics").stdout
    assert "forge_executions_total{" in text and "forge_check_passed{" in text
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    broken = subprocess.run(
        [promtool, "check", "metrics"], input=text.replace("{", "{{"), capture_output=True, text=True, timeout=60
    )
    assert broken.returncode != 0, "or the linter would prove nothing"


def test_it_scrapes_the_dashboard(forge: Forge, tmp_path: Path) -> None:
    prometheus = host_program("prometheus", "prometheus")
    record = forge.record("exec", *SMALL, "--", "sh", "-c", "exit 3")
    port = _free_port()
    with forge.started("dashboard", "--port", "0") as dashboard:
        address = dashboard.stdout.readline().split()[2].removeprefix("http://").rstrip("/")
        (tmp_path / "prometheus.yml").write_text(CONFIGURATION % address)
        with open(tmp_path / "log", "w") as log:
            server = subprocess.Popen(
                [prometheus, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
                 f"--web.listen-address=127.0.0.1:{port}"],
                cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"GOMAXPROCS": "1"},
            )  # fmt: skip
        try:
            (up,) = wait_until("a scrape", lambda: _asked(port, 'up{job="forge"} == 1'), 60)
            assert up["metric"]["instance"] == address
            (count,) = _asked(port, 'sum(forge_executions_total{analysis="exec",end_reason="nonzero_exit"})')
            assert float(count["value"][1]) >= 1
            (wall,) = _asked(port, 'sum(forge_execution_wall_seconds_sum{analysis="exec"})')
            assert float(wall["value"][1]) >= record.usage.wall_s.value
            (middle,) = _asked(
                port, 'histogram_quantile(0.5, sum by (le) (forge_execution_memory_use_ratio_bucket{analysis="exec"}))'
            )
            assert 0 < float(middle["value"][1]) <= 1
            for question in _documented():
                assert _status(port, question) == 200, question
            assert _asked(port, "forge_isolation_degraded") and _asked(port, "forge_capacity_memory_bytes > 0")
        finally:
            server.terminate()
            server.wait(30)
        dashboard.terminate()
        assert dashboard.wait(20) == 0


def _documented() -> list[str]:
    """The questions that the documentation shows."""
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    table = text[text.index("Some questions, as PromQL") : text.index("## Every metric")]
    found = [question.replace("\\|", "|") for question in re.findall(r"\| `(.*)` \|", table)]
    assert len(found) >= 5
    return found


def _status(port: int, query: str) -> int:
    try:
        with urllib.request.urlopen(_address(port, query), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _address(port: int, query: str) -> str:
    return f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"


def _asked(port: int, query: str) -> list[dict[str, Any]]:
    """What it answers; nothing while it starts."""
    try:
        with urllib.request.urlopen(_address(port, query), timeout=10) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
            return found
    except urllib.error.URLError:
        return []


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
