"""Where a process of a delegated service looks for its groups, wherever in the service it is itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forge_orchestration.sandbox.cgroups import find

SERVICE = "/system.slice/forge.service"


@pytest.mark.parametrize("leaf", ["", "/supervisors", "/controllers", "/workers/4f1c0d5e-run"])
def test_a_delegated_service_is_found_from_each_of_its_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaf: str) -> None:
    service = tmp_path / SERVICE.lstrip("/")
    service.mkdir(parents=True)
    (service / "cgroup.procs").write_text("")
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    monkeypatch.setattr(find, "cgroup_mounts", lambda: ({}, str(tmp_path)))
    monkeypatch.setattr(find, "_own_v2_group", lambda: SERVICE + leaf)
    monkeypatch.setattr(os, "geteuid", lambda: 1001)

    def delegated(folder: str, name: str) -> bytes:
        if name == "user.delegate" and folder == str(service):
            return b"1"
        raise OSError(61, "no such attribute")

    monkeypatch.setattr(os, "getxattr", delegated)
    assert find.delegated_service() == SERVICE
    assert find.scope_prefix() == ()
