"""The JSON Schema of `record.json`, generated from the structures: `python -m forge_orchestration.model.schema` writes it to `docs/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from forge_orchestration.model.record import ExecutionRecord


def record_schema() -> dict[str, Any]:
    """The schema as `docs/record.schema.json` holds it."""
    schema = msgspec.to_builtins(msgspec.json.schema(ExecutionRecord), str_keys=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **json.loads(json.dumps(schema))}


if __name__ == "__main__":
    target = Path(__file__).parents[2] / "docs" / "record.schema.json"
    target.write_text(json.dumps(record_schema(), indent=2) + "\n")
