"""What the entry point on a node decides before it makes a sandbox."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.errors import SandboxError
from forge_orchestration.executions import forge_checkpoint
from forge_orchestration.executors import node
from forge_orchestration.model.record import CacheFacts, ExecutionRecord
from forge_orchestration.resume.system_view import system_digest
from forge_orchestration.sandbox import view
from forge_orchestration.sandbox.plan import Bind


def record(system: str, policy: str = "use") -> ExecutionRecord:
    made = ExecutionRecord(execution_id="x", analysis="a", fingerprint_parts={"system": system})
    return msgspec.structs.replace(made, cache=CacheFacts(policy=policy))


def test_a_result_of_the_same_system_files_is_reused(tmp_path: Path) -> None:
    own = system_digest(tmp_path / "submit", node._NoDigests(), 60)
    assert node._why_not_reused(record(own), tmp_path) == ""


def test_one_of_other_system_files_is_not(tmp_path: Path) -> None:
    assert "other system files" in node._why_not_reused(record("0" * 64), tmp_path)


def test_of_what_is_never_reused_nothing_is_looked_at(tmp_path: Path) -> None:
    assert node._why_not_reused(record("0" * 64, "off"), tmp_path) == "" and os.listdir(tmp_path) == []


def bind(path: Path, target: str, **other: int) -> Bind:
    facts = path.stat()
    return Bind(source=str(path), target=target, **{"device": facts.st_dev, "inode": facts.st_ino, **other})


def test_the_device_is_the_nodes_own(tmp_path: Path) -> None:
    assert node._bind_here(bind(tmp_path, "/forge/inputs/x", device=77)) == bind(tmp_path, "/forge/inputs/x")


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="not the file that was checked"):
        node._bind_here(bind(tmp_path, "/forge/inputs/x", inode=77))
    with pytest.raises(SandboxError, match="is not on node"):
        node._bind_here(Bind(source=str(tmp_path / "nosuch"), target="/forge/inputs/x", device=1, inode=1))


def test_what_analyses_may_import_is_the_nodes_own_forge() -> None:
    target = f"{view.LIB}/forge_checkpoint.py"
    elsewhere = Bind(source="/opt/another/forge_checkpoint.py", target=target, device=1, inode=1)
    assert node._bind_here(elsewhere) == bind(Path(forge_checkpoint.__file__), target)
