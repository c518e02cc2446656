"""The error tree and its exit statuses: the design's section 8."""

from __future__ import annotations

import inspect

import pytest

from forge_orchestration import errors
from forge_orchestration.api import ExecutionFailed
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.record import ExecutionRecord

EXIT = {
    "SpecError": 2, "HostError": 3, "RuntimeCatalogError": 4, "ExecutorError": 5, "SubmitError": 5, "BackendUnavailableError": 5,
    "SandboxError": 6, "StuckError": 6, "StoreError": 7, "CanceledError": 15, "InternalError": 70,
}  # fmt: skip


def test_every_error_has_the_exit_status_of_the_design() -> None:
    found = {
        name: kind.exit_code
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ForgeError) and kind is not errors.ForgeError
    }
    assert found == EXIT


@pytest.mark.parametrize("name", EXIT)
def test_only_a_backend_that_may_answer_later_is_transient(name: str) -> None:
    assert getattr(errors, name).transient is (name in ("SubmitError", "BackendUnavailableError"))


def test_an_error_is_its_sentence_and_what_to_do() -> None:
    assert str(errors.SpecError("It is wrong.", "Do this.")) == "It is wrong. Do this."
    assert str(errors.SpecError("It is wrong.")) == "It is wrong."


def test_a_failed_execution_as_an_exception_has_its_record() -> None:
    record = ExecutionRecord(execution_id="x", analysis="a", end_reason=EndReason.MEMORY, message="Too much.", folder="/f")
    error = ExecutionFailed(record)
    assert error.record is record
    assert "Too much." in str(error) and "/f/record.json" in str(error)
