"""No two requests that may make different outputs have one fingerprint, and it does not change from one version to the next unnoticed."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from forge_orchestration.executions.inputs import ResolvedInput
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.record import InputFacts
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.resume.fingerprint import fingerprint_of

A, B = "a" * 64, "b" * 64
SPEC = AnalysisSpec(name="x", command=("python", "run.py"), folder="/x", params={"n": 1}, outputs={"o": "*.csv"})


def read(name: str, sha256: str) -> ResolvedInput:
    return ResolvedInput(name=name, path="/p", device=1, inode=1, facts=InputFacts(name=name, source="/p", sha256=sha256, bytes=1))


def digest(
    spec: AnalysisSpec = SPEC, *, code: dict[str, str] | None = None, inputs: list[ResolvedInput] | None = None, **changes: Any
) -> str:
    other = {name: changes.pop(name) for name in ("runtime", "system") if name in changes}
    spec = msgspec.structs.replace(spec, **changes)
    given: dict[str, Any] = {
        "code": {"run.py": A} if code is None else code,
        "inputs": [read("i", A)] if inputs is None else inputs,
    }
    return fingerprint_of(spec, runtime=other.get("runtime", A), system=other.get("system", A), **given).digest


DIFFERENT: list[dict[str, Any]] = [
    {}, {"name": "y"}, {"command": ("python run.py",)}, {"command": ("python", "run.py", "")}, {"function": "m:f"}, {"seed": 1}, {"threads": 2},
    {"params": {"n": "1"}}, {"params": {"n": 1.0}}, {"params": {"n": True}}, {"params": {"N": 1}}, {"params": {}}, {"params": {"n": A}},
    {"params": {"n": f"{A} "}}, {"params": {"n": "x" * 300}}, {"params": {"n": "x" * 301}}, {"params": {"n": "x" * 300 + "y"}},
    {"env": {"A": "b"}}, {"env": {"A": "c"}}, {"env": {"A": ""}}, {"outputs": {"o": "*"}}, {"outputs": {}}, {"checks": ("c",)}, {"partition": "p"},
    {"partition": ""}, {"code": {"run.py": B}}, {"code": {"run.py": f"{A}:x"}}, {"code": {"run.PY": A}}, {"code": {"run.py": A, "b": A}},
    {"code": {}}, {"inputs": [read("i", B)]}, {"inputs": [read("j", A)]}, {"inputs": []}, {"inputs": [read("i", A), read("j", A)]},
    {"runtime": B}, {"system": B}, {"params": {"n": 1, "m": 1}}, {"params": {"n": "'; DROP"}}, {"env": {"n": "1"}},
]  # fmt: skip


def test_whatever_decides_makes_another_one() -> None:
    found = [digest(**changes) for changes in DIFFERENT]
    for (first, one), (second, other) in itertools.combinations(zip(DIFFERENT, found, strict=True), 2):
        assert one != other, (first, second)


@pytest.mark.parametrize(
    "changes",
    [
        {"limits": Limits(memory_bytes=2**30)}, {"executor": "slurm"}, {"priority": 5}, {"folder": "/elsewhere"}, {"runtime_name": "y"},
        {"dagster_run_id": "r", "dagster_step_key": "k", "attempt": 3, "previous_execution_id": "p"}, {"cache": "refresh"}, {"tags": ("t",)},
        {"group": "g"}, {"chosen_by": {"runtime": "x"}}, {"inputs_paths": {"i": "/other"}}, {"files": ("run.py",)},
    ],
)  # fmt: skip
def test_whatever_does_not_makes_the_same(changes: dict[str, Any]) -> None:
    spec = SPEC
    if "runtime_name" in changes:
        spec = msgspec.structs.replace(spec, runtime=changes.pop("runtime_name"))
    if "inputs_paths" in changes:
        spec = msgspec.structs.replace(spec, inputs=changes.pop("inputs_paths"))
    assert digest(spec, **changes) == digest()


def test_the_order_in_which_parts_are_given_does_not_matter() -> None:
    one = digest(params={"a": 1, "b": 2}, code={"a": A, "b": B}, checks=("c", "d"))
    assert one == digest(params={"b": 2, "a": 1}, code={"b": B, "a": A}, checks=("d", "c"))


def test_it_is_the_same_in_every_version() -> None:
    """Whoever changes what it is made of changes its `VERSION` too: results of before are not found any more."""
    assert digest() == "416ca5bb845c303941e00c61cdad408cdc26c0b7cef62cbd5d8f45954cf38050"
