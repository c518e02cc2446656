"""Where this host's cgroup hierarchies are mounted."""

from __future__ import annotations

from pathlib import Path


def cgroup_mounts() -> tuple[dict[str, str], str | None]:
    """Mount point by v1 controller, and the v2 mount, from `/proc/self/mountinfo`."""
    legacy: dict[str, str] = {}
    unified = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        point = left.split()[4]
        if kind == "cgroup":
            for option in options.split(","):
                legacy.setdefault(option, point)
        elif kind == "cgroup2" and unified is None:
            unified = point
    return legacy, unified
