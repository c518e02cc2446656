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
        type: `opened` and `closed` frame a channel; `log`, `progress` and `metadata` carry something.
        level: Of a `log`.
        message: Text of a `log` or of a `progress`; control characters are replaced.
        fraction: Of a `progress`, from 0 to 1.
        values: Of a `metadata`: flat names to numbers, booleans or text. What an analysis claims, never what we measured.
    """

    type: Literal["opened", "closed", "log", "progress", "metadata"]
    level: Level = "info"
    message: str = ""
    fraction: float | None = None
    values: dict[str, bool | int | float | str] = {}
