"""Inputs that their owner alone may read, for an execution that has a uid of its own.

Copying them would cost room and time, and making them readable would show them to others. Instead the supervisor mounts each, in
its own mount namespace, with the execution's uid in the place of the owner's (an idmapped mount): on that mount, and nowhere
else, the execution is the owner, and the mount is read-only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from forge_orchestration.errors import SandboxError
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.plan import Bind, LaunchPlan


@contextmanager
def mounted_inputs(plan: LaunchPlan, identity: Identity, folder: Path) -> Iterator[LaunchPlan]:
    """The plan with sources as they are to be mounted; what was mounted for it is unmounted at the end.

    Args:
        folder: Where mount points can be made that nobody else enters.

    Raises:
        SandboxError: A file system knows no such mounts, or an input is not the one that was checked any more.
    """
    private = [bind for bind in plan.binds if bind.owner is not None]
    if not identity.is_own or not private:
        yield plan
        return
    if identity.mode == "subordinate_uid":  # the kernel lets only root mount like this
        raise SandboxError(
            f"Input {private[0].source} can be read by its owner alone, and cannot be shown to an execution with a uid of its own.",
            f"Let others read it (chmod o+r {private[0].source}), or have executions run as this user: "
            'without_root = "user_namespace" under [identity] in settings.toml.',
        )
    points: list[Path] = []
    try:
        mounted = {bind.target: _mounted(bind, identity, folder / f"input-{number}", points) for number, bind in enumerate(private)}
        yield msgspec.structs.replace(plan, binds=tuple(mounted.get(bind.target, bind) for bind in plan.binds))
    finally:
        for point in reversed(points):
            linux.unmount(point)


@contextmanager
def mounted_apart(plan: LaunchPlan, identity: Identity, folder: Path) -> Iterator[LaunchPlan]:
    """The plan with every source mounted by descriptor where nobody can change what is there, for an engine that wants paths.

    Raises:
        SandboxError: As `mounted_inputs`; or a source is not what was checked any more.
    """
    points: list[Path] = []
    folder.mkdir(mode=0o700)
    try:
        binds = tuple(_mounted(bind, identity, folder / str(number), points) for number, bind in enumerate(plan.binds))
        yield msgspec.structs.replace(plan, binds=binds)
    finally:
        for point in reversed(points):
            linux.unmount(point, lazily=True)


def _mounted(bind: Bind, identity: Identity, point: Path, points: list[Path]) -> Bind:
    source = os.open(bind.source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        facts = os.fstat(source)
        if (facts.st_dev, facts.st_ino) != (bind.device, bind.inode):
            raise SandboxError(f"{bind.source} changed before it was mounted: not the file that was checked.")
        if os.path.isdir(f"/proc/self/fd/{source}"):
            point.mkdir(mode=0o700)
        else:
            point.touch(mode=0o600)
        if bind.owner is None:
            linux.mount_read_only(source, point)
        else:
            _idmapped(source, bind, identity, point)
        points.append(point)
    finally:
        os.close(source)
    return msgspec.structs.replace(bind, source=os.fspath(point))


def _idmapped(source: int, bind: Bind, identity: Identity, point: Path) -> None:
    assert bind.owner is not None
    try:
        with linux.user_namespace(uids=(bind.owner[0], identity.uid), gids=(bind.owner[1], identity.gid)) as namespace:
            linux.mount_read_only(source, point, namespace)
    except OSError as error:
        raise SandboxError(
            f"Input {bind.source} can be read by its owner alone, and cannot be shown to an execution: {error.strerror}.",
            f"Its file system knows no idmapped mounts. Let others read it (chmod o+r {bind.source}), or put it elsewhere.",
        ) from error
