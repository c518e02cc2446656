"""The host's other work goes first: what makes the kernel prefer it to executions, beyond their limits.

- A low weight of the group that holds all of them: where processors are short, others get most.
- Long time slices: the kernel lets a process that wakes interrupt one with a longer slice at once, and lets one with a slice as
  short as its own finish it first. Without them each wake-up of a neighbour costs it a millisecond or more beside eight busy
  executions. The system call filter refuses to set them back.
- A high score when the host, not an execution, is out of memory: the kernel then ends an analysis and not the database.
- Where a deployment sets them, limits on the disk transfers of all executions together (cgroup v2 only: v1 does not count what
  is written back later).

The memory and process limits are no matter of precedence: see `cgroups`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from forge_orchestration.errors import HostError, SandboxError
from forge_orchestration.model.record import Enforced
from forge_orchestration.model.sections import NeighbourSettings
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.cgroups.base import read, write
from forge_orchestration.sandbox.cgroups.find import REMEDY, CgroupSite, find_site, scope_prefix
from forge_orchestration.sandbox.cgroups.total import set_slice_properties, slice_of
from forge_orchestration.sandbox.plan import LaunchPlan
from forge_orchestration.settings import Settings

_V1_SHARES = 1024  # what cgroup v1 gives a group that v2 gives a weight of 100
_NANOSECONDS = 1_000_000
_PROPERTIES = {"rbps": "IOReadBandwidthMax", "wbps": "IOWriteBandwidthMax", "riops": "IOReadIOPSMax", "wiops": "IOWriteIOPSMax"}
_RATES = {"rbps": "read_bytes_per_s", "wbps": "write_bytes_per_s", "riops": "reads_per_s", "wiops": "writes_per_s"}


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How far all executions stand back: what was read back, and `on` or `off: why`."""

    enforced: dict[str, Enforced]
    protection: str = "on"


def hold_back(plan: LaunchPlan) -> Standing:
    """See to it that the group of all executions has its weight and its disk limits, and read them back.

    Raises:
        SandboxError: A disk limit that the deployment demands cannot be had.
    """
    limits = _limit_disks(plan)
    path, wanted = _weight(plan.cgroup, plan.neighbours)
    try:
        if (found := int(read(path))) != wanted:
            if slice_of(plan.cgroup) is None:
                write(path, str(wanted))
            else:  # it is systemd's, which would write its own value again some day
                set_slice_properties(f"CPUWeight={wanted}")
            found = int(read(path))
    except OSError as error:
        return Standing(enforced=limits, protection=f"off: {path} cannot be set: {error.strerror}. {REMEDY}")
    except HostError as error:
        return Standing(enforced=limits, protection=f"off: {error}")
    if found != wanted:
        return Standing(enforced=limits, protection=f"off: {path} was set to {wanted} and says {found}")
    return Standing(enforced=limits | {"cpu_weight": Enforced(value=plan.neighbours.cpu_weight, source=str(path))})


def outlook(settings: Settings) -> str:
    """What executions on this host can be made to do for its other work.

    Raises:
        HostError: Their weight cannot be set.
    """
    neighbours = settings.neighbours
    sentence = f"executions have a processor weight of {neighbours.cpu_weight}, where others have 100"
    if linux.time_slice(0) and neighbours.cpu_slice_ms:
        sentence += f", and time slices of {neighbours.cpu_slice_ms:g} ms"
    if not scope_prefix(settings.cgroup.parent):  # systemd's slice is ours
        path, wanted = _weight(find_site(settings.cgroup.parent), neighbours)
        if path.exists() and read(path) != str(wanted) and not os.access(path, os.W_OK):
            raise HostError(f"{path} is {read(path)}, not {wanted}, and cannot be written.", REMEDY)
    return sentence


def stand_back(settings: NeighbourSettings) -> None:
    """In the process that becomes the command, while it still sees the host's `/proc`."""
    write(Path("/proc/self/oom_score_adj"), str(settings.oom_score_adj))
    if settings.cpu_slice_ms:
        linux.set_time_slice(round(settings.cpu_slice_ms * _NANOSECONDS))


def read_back(pid: int, settings: NeighbourSettings) -> dict[str, Enforced]:
    """What `stand_back` has done to the process `pid` of this host, which has become nothing of the analysis yet.

    Raises:
        SandboxError: The kernel holds another value than the one asked.
    """
    score = Path(f"/proc/{pid}/oom_score_adj")
    if (found := int(read(score))) != settings.oom_score_adj:
        raise SandboxError(f"oom_score_adj was set to {settings.oom_score_adj}, but {score} says {found}.")
    seen = {"oom_score_adj": Enforced(value=found, source="oom_score_adj of the command in /proc")}
    slice_ms = linux.time_slice(pid) / _NANOSECONDS
    if settings.cpu_slice_ms and slice_ms:  # else the kernel has no slices, and prefers who slept by other means
        if abs(slice_ms - max(0.1, settings.cpu_slice_ms)) > 1e-3:
            raise SandboxError(f"The time slice was set to {settings.cpu_slice_ms:g} ms, but the kernel says {slice_ms:g} ms.")
        seen["cpu_slice_ms"] = Enforced(value=slice_ms, source="sched_getattr of the command")
    return seen


def _disks(folder: str, others: Iterable[int]) -> set[str]:
    """The disks (`major:minor`) beneath `folder` and beneath file systems with the device numbers `others`.

    A file system without a device of its own, such as an overlay, a network's or a memory file system, has none.
    """
    found = set()
    for device in {os.stat(folder).st_dev, *others}:
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        if block.exists():
            whole = block.resolve().parent if (block / "partition").exists() else block
            found.add(read(whole / "dev"))
    return found


def _weight(site: CgroupSite, settings: NeighbourSettings) -> tuple[Path, int]:
    """The control file of the group that competes with the host's others, and what it is to hold."""
    if site.version == 1:
        return Path(site.mounts["cpu"], site.parent, "cpu.shares"), max(2, round(settings.cpu_weight * _V1_SHARES / 100))
    return Path(site.mounts["unified"], slice_of(site) or site.parent, "cpu.weight"), settings.cpu_weight


def _limit_disks(plan: LaunchPlan) -> dict[str, Enforced]:
    """What the deployment does not limit is left alone: somebody may have limited it by hand."""
    site = plan.cgroup
    wanted = {key: rate for key, field in _RATES.items() if (rate := getattr(plan.neighbours, field)) is not None}
    if not wanted:
        return {}
    demand = "[neighbours] in settings.toml limits disk transfers"
    if site.version == 1:
        raise SandboxError(f"{demand}, which this host's cgroup v1 cannot.", "Remove those limits.")
    disks = _disks(plan.scratch_dir, (bind.device for bind in plan.binds))
    if not disks:
        raise SandboxError(f"{demand}, and Forge's files lie on no disk of this host.", "Remove those limits.")
    path = Path(site.mounts["unified"], slice_of(site) or site.parent, "io.max")
    try:
        for disk in disks:
            if not wanted.items() <= _rates(path, disk).items():
                _set_rates(path, disk, wanted, by_systemd=slice_of(site) is not None)
            if not wanted.items() <= (found := _rates(path, disk)).items():
                raise SandboxError(f"The limits of disk {disk} were set to {wanted}, but {path} says {found}.")
    except (OSError, HostError) as error:
        why = error.message if isinstance(error, HostError) else error.strerror
        raise SandboxError(
            f"{demand}, and {path} cannot be set: {why}.", "Delegate the io controller, or remove those limits."
        ) from error
    return {_RATES[key]: Enforced(value=rate, source=str(path)) for key, rate in wanted.items()}


def _set_rates(path: Path, disk: str, rates: dict[str, int], *, by_systemd: bool) -> None:
    if by_systemd:
        set_slice_properties(*(f"{_PROPERTIES[key]}=/dev/block/{disk} {rate}" for key, rate in rates.items()))
    else:
        write(path, " ".join([disk, *(f"{key}={rate}" for key, rate in rates.items())]))


def _rates(path: Path, disk: str) -> dict[str, int]:
    """The limits that `io.max` holds for a disk."""
    for line in read(path).splitlines():
        name, *fields = line.split()
        if name == disk:
            return {key: int(rate) for key, rate in (field.split("=") for field in fields) if rate != "max"}
    return {}
