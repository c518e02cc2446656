"""The public API: what other people's code calls is changed on purpose, or not at all."""

from __future__ import annotations

import inspect

import pytest

import forge_orchestration
from forge_orchestration.errors import SpecError

NAMES = [
    "Analysis", "AnalysisSpec", "BackendUnavailableError", "EndReason", "ExecutionFailed", "ExecutionRecord", "ExecutorError", "ForgeError", "HostError",
    "InternalError", "Limits", "RuntimeCatalogError", "SandboxError", "SpecError", "Status", "StoreError", "SubmitError", "executions_frame",
    "forge_asset", "forge_op", "run",
]  # fmt: skip


def test_the_exported_names() -> None:
    assert forge_orchestration.__all__ == NAMES
    assert all(hasattr(forge_orchestration, name) for name in NAMES)


def test_the_signature_of_run() -> None:
    signature = inspect.signature(forge_orchestration.run)
    assert str(signature.replace(return_annotation=inspect.Signature.empty)) == (
        "(what: 'AnalysisSpec | str | Sequence[str]', *, runtime: 'str | None' = None, executor: 'str | None' = None, "
        "inputs: 'Mapping[str, str] | None' = None, outputs: 'Sequence[str] | Mapping[str, str]' = (), "
        "partition: 'str | None' = None, params: 'Mapping[str, object] | None' = None, limits: 'Mapping[str, object] | None' = None, "
        "env: 'Mapping[str, str] | None' = None, threads: 'int | None' = None, seed: 'int | None' = None, "
        "priority: 'int | None' = None, cache: 'str | None' = None, wait_for_room: 'bool' = True, check: 'bool' = False, "
        "listener: 'Listener | None' = None, cancel: 'threading.Event | None' = None)"
    )
    assert signature.return_annotation == "ExecutionRecord"


def test_the_signature_of_executions_frame() -> None:
    assert str(inspect.signature(forge_orchestration.executions_frame)) == (
        "(*, analysis: 'str | None' = None, status: 'str | None' = None, since: 'datetime | str | None' = None) -> 'pd.DataFrame'"
    )


def test_the_fields_of_a_record() -> None:
    """The design's section 5; a field may be added, and added here, but none goes away or changes its name."""
    assert set(forge_orchestration.ExecutionRecord.__struct_fields__) >= {
        "schema_version", "execution_id", "analysis", "attempt", "previous_execution_id", "executor", "native_id", "host",
        "dagster_run_id", "dagster_step_key", "status", "end_reason", "message", "exit_code", "signal", "runtime", "command",
        "parameters", "seed", "threads", "inputs", "code", "limits", "enforced", "isolation", "violations", "usage", "outputs",
        "rejected_outputs", "published", "logs", "cleanup", "fingerprint", "cache", "queued_at", "started_at", "ended_at",
    }  # fmt: skip


class TestRun:
    @pytest.mark.parametrize("command", [[], [""], ["a\0b"], ["X=1", "true"], [1]])
    def test_no_command(self, tmp_path, monkeypatch: pytest.MonkeyPatch, command: list) -> None:
        monkeypatch.setenv("FORGE_HOME", str(tmp_path))
        with pytest.raises(SpecError):
            forge_orchestration.run(command)

    def test_an_analysis_declares_its_own_outputs(self, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORGE_HOME", str(tmp_path))
        with pytest.raises(SpecError, match=r"analysis\.yaml"):
            forge_orchestration.run("confinement", outputs=["x"])

    def test_a_command_runs_and_an_unsuccessful_one_can_raise(self, forge_home) -> None:
        from forge_orchestration.api import ExecutionFailed

        limits = {"memory": "128MiB", "pids": 20, "scratch": "8MiB"}
        record = forge_orchestration.run(["sh", "-c", "exit 3"], limits=limits)
        assert (record.end_reason, record.exit_code) == (forge_orchestration.EndReason.NONZERO_EXIT, 3)
        assert record.limits.memory_bytes == 128 * 2**20
        with pytest.raises(ExecutionFailed, match="status 3"):
            forge_orchestration.run(["sh", "-c", "exit 3"], limits=limits, check=True)
