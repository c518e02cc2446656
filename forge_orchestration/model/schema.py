"""The JSON Schema of `record.json`, generated from the structures: `python -m forge_orchestration.model.schema` writes it to `docs/`."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgspec

from forge_orchestration.model.record import ExecutionRecord


def record_schema() -> dict[str, Any]:
    """The schema as `docs/record.schema.json` holds it."""
    return schema_of(ExecutionRecord)


def schema_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of a structure, the same under every Python."""
    schema = json.loads(json.dumps(msgspec.to_builtins(msgspec.json.schema(kind), str_keys=True)))
    for definition in schema["$defs"].values():
        if "description" in definition:  # Python 3.13 takes the indentation out of docstrings, earlier ones do not
            definition["description"] = inspect.cleandoc(definition["description"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_schema(name: str, schema: dict[str, Any]) -> None:
    """Write it to `docs/`."""
    target = Path(__file__).parents[2] / "docs" / f"{name}.schema.json"
    target.write_text(json.dumps(schema, indent=2) + "\n")


if __name__ == "__main__":
    write_schema("record", record_schema())
