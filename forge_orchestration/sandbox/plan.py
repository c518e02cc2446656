"""The launch plan: everything a supervisor needs, written to `plan.json` before it is started.

The controller decides, the supervisor obeys: it reads no settings and makes no choice that the plan does not hold.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from forge_orchestration.model.compiled import compiled
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.sections import (
    IdentitySettings,
    IsolationSettings,
    MessageSettings,
    NeighbourSettings,
    OutputSettings,
    SupervisionSettings,
)
from forge_orchestration.sandbox.cgroups.find import CgroupSite


class Bind(msgspec.Struct, frozen=True, kw_only=True):
    """A read-only file or folder of the host inside the sandbox.

    `device` and `inode` are those of the file that was checked and hashed: before the command starts, the supervisor
    compares them with what is really mounted, so that a path swapped in between is noticed. `owner` are user and group of
    what nobody else may read: the execution's own uid is made to pass for them, on this mount alone.
    """

    source: str
    target: str
    device: int
    inode: int
    owner: tuple[int, int] | None = None


class ContainerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine is asked for a container, by its address, and of which image, by its id."""

    engine: str
    image: str


class CheckpointPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Where checkpoints are published, and the one to go on from, if there is one: its name there."""

    folder: str
    start: str = ""


@compiled
class LaunchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One local execution.

    Attributes:
        folder: The execution's folder on the host.
        scratch_dir: Where workspaces are made.
        command: Program and arguments; run with `environment` and nothing else.
        system_binds: Host folders of the system view, each read-only at its own path.
        system_links: Links of the system view, target by path.
        binds: Runtime, analysis files, inputs.
        outputs: Declared outputs: pattern by name.
        checks: Names of declared checks.
        checkpoint: None of what has no fingerprint.
        container: Where an engine's container is the sandbox; else bubblewrap makes one.
    """

    execution_id: str
    analysis: str
    folder: str
    scratch_dir: str
    bubblewrap: str
    command: tuple[str, ...]
    environment: dict[str, str]
    limits: Limits
    system_binds: tuple[str, ...]
    system_links: dict[str, str]
    binds: tuple[Bind, ...]
    outputs: dict[str, str]
    checks: tuple[str, ...] = ()
    parameters_json: str
    cgroup: CgroupSite
    identity: IdentitySettings
    messages: MessageSettings
    output_caps: OutputSettings
    supervision: SupervisionSettings
    neighbours: NeighbourSettings = NeighbourSettings()
    isolation: IsolationSettings = IsolationSettings()
    checkpoint: CheckpointPlan | None = None
    container: ContainerPlan | None = None


def plan_from_json(data: bytes) -> LaunchPlan:
    """Read a plan back.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: The text is no plan.
    """
    return msgspec.json.decode(data, type=LaunchPlan)


def read_plan(folder: Path) -> LaunchPlan:
    """The plan of the execution in `folder`.

    Raises:
        FileNotFoundError: It has none, because it was never submitted.
    """
    return plan_from_json((folder / "plan.json").read_bytes())
