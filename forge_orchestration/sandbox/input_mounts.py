"""How inputs are mounted for an execution that has a uid of its own, when a plain read-only mount would not do.

A *file or folder that its owner alone may read*: copying it would cost room and time, and making it readable would show it to
others. Instead it is mounted with the execution's uid in the place of the owner's (an idmapped mount): on that mount, and nowhere
else, the execution is the owner.

A *folder*: a read-only mount stops neither a connection to a socket nor a write to a FIFO that someone makes in it later, nor a
lock that makes the host's programs wait. Beneath an overlay file system these are the sandbox's own, and lead nowhere.

All of it is mounted in the supervisor's own mount namespace, from descriptors, and goes with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from forge_orchestration.errors import SandboxError
from forge_orchestration.sandbox import linux, view
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
    inputs = [bind for bind in plan.binds if bind.target.startswith(f"{view.INPUTS}/")]
    special = [bind for bind in inputs if bind.owner is not None or os.path.isdir(bind.source)]
    if identity.mode != "own_uid" or not special:
        yield plan
        return
    points: list[Path] = []
    try:
        mounted = {bind.target: _mounted(bind, identity, folder / f"input-{number}", points) for number, bind in enumerate(special)}
        yield msgspec.structs.replace(plan, binds=tuple(mounted.get(bind.target, bind) for bind in plan.binds))
    finally:
        for point in reversed(points):
            linux.unmount(point)


def _mounted(bind: Bind, identity: Identity, point: Path, points: list[Path]) -> Bind:
    source = os.open(bind.source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        facts = os.fstat(source)
        if (facts.st_dev, facts.st_ino) != (bind.device, bind.inode):
            raise SandboxError(f"{bind.source} changed before it was mounted: not the file that was checked.")
        if bind.owner is not None:
            source = _reopened(source, _idmapped(source, bind, identity, point, points))
        if os.path.isdir(f"/proc/self/fd/{source}"):
            point = _overlaid(source, bind, point, points)
        facts = os.stat(point)
    finally:
        os.close(source)
    return msgspec.structs.replace(bind, source=os.fspath(point), device=facts.st_dev, inode=facts.st_ino)


def _idmapped(source: int, bind: Bind, identity: Identity, point: Path, points: list[Path]) -> Path:
    assert bind.owner is not None
    try:
        if os.path.isdir(f"/proc/self/fd/{source}"):
            point.mkdir(mode=0o700)
        else:
            point.touch(mode=0o600)
        with linux.user_namespace(uids=(bind.owner[0], identity.uid), gids=(bind.owner[1], identity.gid)) as namespace:
            linux.mount_idmapped(source, point, namespace)
    except OSError as error:
        raise SandboxError(
            f"Input {bind.source} can be read by its owner alone, and cannot be shown to an execution: {error.strerror}.",
            f"Its file system knows no idmapped mounts. Let others read it (chmod o+r {bind.source}), or put it elsewhere.",
        ) from error
    points.append(point)
    return point


def _overlaid(source: int, bind: Bind, point: Path, points: list[Path]) -> Path:
    empty, top = point.with_name(f"{point.name}-empty"), point.with_name(f"{point.name}-top")
    empty.mkdir(mode=0o755)
    top.mkdir(mode=0o755)
    try:
        linux.mount_overlay(source, empty, top)
    except OSError as error:
        raise SandboxError(
            f"Input folder {bind.source} cannot be mounted beneath an overlay: {error.strerror}.",
            "Name its files as inputs one by one, or put it on a file system that can be (ext4, XFS, btrfs, NFS …).",
        ) from error
    points.append(top)
    return top


def _reopened(source: int, path: Path) -> int:
    os.close(source)
    return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
