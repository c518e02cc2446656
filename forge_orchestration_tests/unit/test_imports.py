"""What a command loads: `forge` starts fast because it loads little, and Dagster never."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("dagster", "dagster_webserver", "pandas", "numpy", "psutil", "uv", "sqlalchemy", "prometheus_client")


def modules_after(code: str, tmp_path: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        env={"PATH": "/usr/bin:/bin", "FORGE_HOME": str(tmp_path), "LANG": "C.UTF-8"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.splitlines()} | set(done.stdout.splitlines())


def command(*words: str) -> str:
    return f"import contextlib\nwith contextlib.suppress(SystemExit):\n  from forge_orchestration.cli.main import main; main({list(words)})"


@pytest.mark.parametrize(
    "words",
    [("--help",), ("exec", "--help"), ("executions", "list"), ("runtimes", "list"), ("exec", "--runtime", "nosuch", "--", "true")],
)
def test_a_command_loads_neither_dagster_nor_anything_heavy(words: tuple[str, ...], tmp_path: Path) -> None:
    loaded = modules_after(command(*words), tmp_path)
    assert "forge_orchestration.cli.main" in loaded
    assert not loaded & set(HEAVY)


def test_an_execution_loads_neither_dagster_nor_rich_nor_yaml(forge, tmp_path: Path) -> None:
    """All of `forge exec`, from its arguments to its last line: seen by the interpreter's own list of imports."""
    done = forge("exec", "--", "true", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "forge_orchestration" in loaded
    assert not loaded & {*HEAVY, "rich", "yaml", "packaging"}


def test_importing_the_package_is_cheap(tmp_path: Path) -> None:
    loaded = modules_after("import forge_orchestration", tmp_path)
    assert "forge_orchestration.engine" not in loaded
    assert not loaded & {*HEAVY, "rich", "yaml", "sqlite3", "asyncio"}


def test_metrics_load_neither_dagster_nor_pandas(tmp_path: Path) -> None:
    loaded = modules_after(command("metrics"), tmp_path)
    assert "forge_orchestration.metrics.exposition" in loaded
    assert not loaded & (set(HEAVY) - {"prometheus_client"})


def test_the_spawner_loads_what_supervisors_need_and_no_more(tmp_path: Path) -> None:
    loaded = modules_after("import forge_orchestration.sandbox.spawner", tmp_path)
    assert not loaded & {*HEAVY, "rich", "yaml", "sqlite3", "argparse"}
