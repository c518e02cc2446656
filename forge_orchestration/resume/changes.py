"""What has changed since an execution: the parts of a fingerprint that are not what they were, and how people are told."""

from __future__ import annotations

import msgspec

from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.resume.fingerprint import Fingerprint
from forge_orchestration.resume.system_view import SystemView, kept_view
from forge_orchestration.settings import Settings

_MOST_NAMED = 3


class ChangedPart(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a fingerprint that is another than it was; None where there is no such part."""

    part: str
    before: str | None
    now: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.part} is new ({shortened(self.now)})"
        if self.now is None:
            return f"{self.part} is gone (it was {shortened(self.before)})"
        return f"{self.part} from {shortened(self.before)} to {shortened(self.now)}"


def changes_since(record: ExecutionRecord, wanted: Fingerprint, settings: Settings) -> list[ChangedPart]:
    """The parts that are not what they were when `record` was made, by name."""
    before, now = record.fingerprint_parts, wanted.parts
    changes = []
    for part in sorted({*before, *now}):
        if before.get(part) != now.get(part):
            details = _packages(before.get(part), now.get(part), settings) if part == "system" else []
            changes += details or [ChangedPart(part=part, before=before.get(part), now=now.get(part))]
    return changes


def named(changes: list[ChangedPart]) -> str:
    """The first of them, and how many there are."""
    more = f" and {len(changes) - _MOST_NAMED} more" if len(changes) > _MOST_NAMED else ""
    return f"{', '.join(str(change) for change in changes[:_MOST_NAMED])}{more}"


def shortened(value: str | None) -> str:
    """A part as people compare it: the first twelve digits of a digest."""
    if value is None:
        return "-"
    digest = value.removeprefix("sha256:").removesuffix(":x")
    return f"{digest[:12]}…" if len(digest) == 64 and not value.startswith('"') else value


def _packages(before: str | None, now: str | None, settings: Settings) -> list[ChangedPart]:
    """What has changed in the host's programs, one by one, where it is known what the digests stand for."""
    views = [kept_view(settings.cache_dir, digest) for digest in (before, now) if digest is not None]
    if len(views) != 2 or views[0] is None or views[1] is None:
        return []
    old, new = (_flat(view) for view in views if view is not None)
    return [
        ChangedPart(part=f"system/{name}", before=old.get(name), now=new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _flat(view: SystemView) -> dict[str, str]:
    return {"machine": view.machine, **view.packages, **view.programs, **view.folders, **view.alternatives}
