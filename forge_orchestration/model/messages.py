"""What an analysis may say while it runs, after validation. Parsing the hostile bytes is `executions.messages`' work."""

from __future__ import annotations

from typing import Literal

import msgspec

from forge_orchestration.model.compiled import compiled

Level = Literal["debug", "info", "warning", "error", "critical"]


@compiled
class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One validated message.

    Attributes:
        type: `opened` and `closed` frame a channel; `log`, `progress`, `metadata` and `check` carry something.
        level: Of a `log`; of a `check` `warning`, if it matters less than an error.
        message: Text of a `log`, a `progress` or a `check`; control characters are replaced.
        fraction: Of a `progress`, from 0 to 1.
        values: Of a `metadata` or a `check`: flat names to numbers, booleans or text. What an analysis claims, never what we measured.
        name: Of a `check`, one of those that the analysis declares.
        passed: Whether a `check` found what it expects.
    """

    type: Literal["opened", "closed", "log", "progress", "metadata", "check"]
    level: Level = "info"
    message: str = ""
    fraction: float | None = None
    values: dict[str, bool | int | float | str] = {}
    name: str = ""
    passed: bool | None = None
