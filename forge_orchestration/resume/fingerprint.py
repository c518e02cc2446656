"""The fingerprint: everything that decides the outputs of an execution, part by part, and a digest of all of it.

Not in it: limits, executor, host, time, who asked. What changes none of its parts changes no output of an analysis that computes
the same from the same; what changes one of them may.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import msgspec

from forge_orchestration.executions.inputs import ResolvedInput
from forge_orchestration.model.spec import AnalysisSpec

VERSION = 1
"""Of the parts and of what is written into each. Results of another version are not reused."""

_DIGEST = re.compile(r"[0-9a-f]{64}(:x)?")
_LONG = 200  # characters of a part that are kept as they are: parts are kept in each record


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What an execution is made of.

    Attributes:
        parts: By name, such as `param/resolution` or `input/cells`, what it is: a value as JSON, or a sha256.
    """

    parts: dict[str, str]

    @property
    def digest(self) -> str:
        """sha256, hexadecimal, over the version and all parts."""
        return hashlib.sha256(msgspec.json.encode([VERSION, sorted(self.parts.items())])).hexdigest()


def fingerprint_of(
    spec: AnalysisSpec, *, code: Mapping[str, str], inputs: Sequence[ResolvedInput], runtime: str, system: str
) -> Fingerprint:
    """The fingerprint of one request.

    Args:
        code: Digest of each of the analysis' own files, by relative path.
        runtime: Content digest of the runtime.
        system: Digest of what of the host is seen in a sandbox.
    """
    parts: dict[str, object] = {
        "analysis": spec.name,
        "command": spec.command,
        "runtime": runtime,
        "system": system,
        "seed": spec.seed,
        "threads": spec.threads,
        **{f"code/{path}": digest for path, digest in code.items()},
        **{f"input/{item.name}": item.facts.sha256 for item in inputs},
        **{f"param/{name}": value for name, value in spec.params.items()},
        **{f"env/{name}": value for name, value in spec.env.items()},
        **{f"output/{name}": pattern for name, pattern in spec.outputs.items()},
    }
    parts |= {"function": spec.function} if spec.function else {}
    parts |= {"checks": sorted(spec.checks)} if spec.checks else {}
    parts |= {"partition": spec.partition} if spec.partition is not None else {}
    return Fingerprint(parts={name: _written(value) for name, value in sorted(parts.items())})


def _written(value: object) -> str:
    """As JSON; a digest as it is, and what is long by its digest."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _LONG else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
