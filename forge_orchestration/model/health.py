"""The result of one health check, as `forge doctor`, the sensor and the asset checks show it."""

from __future__ import annotations

from typing import Literal

import msgspec


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One check of one thing.

    Attributes:
        name: What is checked, in snake case (`memory_limit`, `seal`).
        target: `host`, or the name of a runtime.
        passed: Whether all is well.
        severity: `error` if executions are refused or must not be trusted; `warning` otherwise.
        finding: What was found, one sentence, also when all is well.
        remedy: The one command or step that repairs it; empty when passed.
        corruption: Whether what was looked at was read, and is not what it was. What could not be looked at is only suspect.
    """

    name: str
    target: str
    passed: bool
    severity: Literal["error", "warning"] = "error"
    finding: str = ""
    remedy: str = ""
    corruption: bool = False
