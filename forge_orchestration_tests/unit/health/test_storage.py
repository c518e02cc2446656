"""Outputs that rot are found, and named."""

from __future__ import annotations

import os
from pathlib import Path

import forge_orchestration
from forge_orchestration.executions.folder import new_execution_id
from forge_orchestration.health.storage import storage_checks
from forge_orchestration.model.health import CheckResult
from forge_orchestration.settings import load_settings


def test_outputs_that_are_no_longer_what_was_collected(forge_home: Path, tmp_path: Path) -> None:
    record = forge_orchestration.run(
        ["sh", "-c", "echo 1 > $FORGE_OUTPUTS/one; mkdir $FORGE_OUTPUTS/f; echo 2 > $FORGE_OUTPUTS/f/two"]
    )
    settings = load_settings(forge_home)
    whole = {result.name: result for result in storage_checks(settings, full=True)}
    assert all(result.passed for result in whole.values()), whole
    two = Path(record.folder, "outputs/f/two")
    facts = two.stat()
    try:
        two.write_text("3\n")
        os.utime(two, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        Path(record.folder, "outputs/one").unlink()
        rotten = {result.name: result for result in storage_checks(settings, full=True)}["outputs"]
        assert not rotten.passed and f"{two} has other content" in rotten.finding and "one is missing" in rotten.finding
    finally:
        two.write_text("2\n")
        Path(record.folder, "outputs/one").write_text("1\n")
    assert {result.name: result for result in storage_checks(settings, full=False)}["outputs"].passed


def test_what_dead_executions_have_left_and_logs_that_are_gone(forge_home: Path) -> None:
    record = forge_orchestration.run(["echo", "hello"])
    settings = load_settings(forge_home)

    def found() -> dict[str, CheckResult]:
        return {result.name: result for result in storage_checks(settings, full=True)}

    before = found()
    assert before["leftovers"].passed and before["logs"].passed, before
    log, left = Path(record.logs["stdout"].path), settings.scratch_dir / new_execution_id()
    left.mkdir()
    log.write_text("hel")
    try:
        after = found()
        assert not after["leftovers"].passed and left.name in after["leftovers"].finding and after["leftovers"].remedy == "forge gc"
        assert not after["logs"].passed and str(log) in after["logs"].finding
    finally:
        log.write_text("hello\n")
        left.rmdir()
