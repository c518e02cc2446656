"""Whether `[guard]` in the settings guards what it seems to: a name with a slip of the pen guards nothing, and nobody notices."""

from __future__ import annotations

import os

from forge_orchestration.analyses import load_definitions
from forge_orchestration.errors import HostError
from forge_orchestration.settings import Settings

_WITHOUT_DEFINITION = {"*", "exec", "self_test"}


def guard_outlook(settings: Settings) -> str:
    """What is looked at, around which analyses.

    Raises:
        HostError: A name fits no analysis, or a path is not there or is a link.
    """
    guard, definitions = settings.guard, load_definitions(settings).values()
    asked = {"name": guard.analyses, "group": guard.groups, "tag": guard.tags}
    known = {
        "name": {one.name for one in definitions}, "group": {one.group for one in definitions},
        "tag": {tag for one in definitions for tag in one.tags},
    }  # fmt: skip
    wrong = [
        f"no analysis that ships or is configured has the {key} '{value}'"
        for key, values in asked.items()
        for value in values
        if value not in known[key] | _WITHOUT_DEFINITION
    ]
    for path in guard.paths:
        if path.is_symlink():
            wrong.append(f"{path} is a link to {os.readlink(path)}, which is not looked at")
        elif not path.exists():
            wrong.append(f"{path} is not there")
    if wrong:
        raise HostError(f"[guard] guards less than it says: {'; '.join(wrong)}.", "Correct it in settings.toml.")
    guarded = [one.name for one in definitions if guard.picks(one.name, one.group, one.tags)]
    databases = settings.protected_databases if guard.databases is None else guard.databases
    around = ", ".join(guarded) or "bare commands only"
    return f"{len(databases)} databases and {len(guard.paths)} paths are looked at around {around}"
