"""`docs/record.schema.json` says what records look like."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.schema import record_schema
from forge_orchestration_tests.unit.model.test_round_trips import EXAMPLES

COMMITTED = Path(__file__).parents[3] / "docs" / "record.schema.json"


def test_the_committed_schema_is_the_generated_one() -> None:
    assert json.loads(COMMITTED.read_text()) == record_schema(), "run: python -m forge_orchestration.model.schema"


def test_records_obey_it() -> None:
    example = next(one for one in EXAMPLES if isinstance(one, ExecutionRecord))
    jsonschema.validate(json.loads(example.to_json()), record_schema())
    jsonschema.validate(json.loads(ExecutionRecord(execution_id="x", analysis="a").to_json()), record_schema())


def test_a_real_record_obeys_it(forge) -> None:
    done = forge("exec", "--json", "--", "true")
    jsonschema.validate(json.loads(done.stdout), json.loads(COMMITTED.read_text()))


@pytest.mark.parametrize(
    "change", [{"status": "fine"}, {"end_reason": "bored"}, {"execution_id": 5}, {"limits": {"memory_bytes": "1"}}]
)
def test_what_is_no_record_does_not_obey_it(change: dict) -> None:
    record = json.loads(ExecutionRecord(execution_id="x", analysis="a").to_json())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record | change, record_schema())
