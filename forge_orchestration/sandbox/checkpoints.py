"""Checkpoints on their way out of a sandbox while it runs, and into the next one.

What an analysis puts into `/forge/checkpoint` under a name that does not begin with a dot is a checkpoint. It is copied out as
soon as it is there, by a helper of the supervisor's, and the copy gets its place when it is whole and on the disk: whoever is
killed, and be it the host, leaves the last whole one. In a folder a fingerprint,

    checkpoints/<fingerprint>/00000007-<execution id>/

the highest number is the one to go on from. As with outputs nothing in it is trusted.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import struct
import time
from pathlib import Path

from forge_orchestration.errors import SandboxError
from forge_orchestration.executions.folder import sync_folder
from forge_orchestration.executions.outputs import collect_outputs
from forge_orchestration.model.sections import OutputSettings
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.plan import CheckpointPlan

_UNFINISHED = ".new-"
_SECONDS = struct.Struct("d")
_SHARE = 10  # of the time of a publication that must pass before the next: who saves all the time costs a tenth of a core


def latest(folder: Path) -> str:
    """Name of the latest checkpoint in the folder of a fingerprint; empty if there is none."""
    return max(_published(folder), default="")


def made_by(name: str) -> str:
    """Id of the execution that a checkpoint is of."""
    return name.partition("-")[2]


def remove_unfinished(folder: Path, execution_id: str) -> None:
    """What is left of a publication that was cut short."""
    shutil.rmtree(folder / f"{_UNFINISHED}{execution_id}", ignore_errors=True)


def restore(plan: CheckpointPlan, target: Path, identity: Identity) -> int:
    """Give a new execution the checkpoint to go on from; returns its size in bytes.

    Raises:
        SandboxError: It does not fit.
    """
    source, total = Path(plan.folder, plan.start), 0
    try:
        for root, folders, files in os.walk(source):
            there = target / Path(root).relative_to(source)
            for name in folders:
                (there / name).mkdir(mode=0o700)
                _hand_over(there / name, identity)
            for name in files:
                shutil.copyfile(Path(root, name), there / name)
                _hand_over(there / name, identity)
                total += (there / name).stat().st_size
    except OSError as error:
        raise SandboxError(
            f"The checkpoint of execution {made_by(plan.start)} cannot be given to this one: {error.strerror}.",
            "Allow more scratch, or start anew: --cache refresh",
        ) from error
    return total


def _hand_over(path: Path, identity: Identity) -> None:
    path.chmod(0o700 if path.is_dir() else 0o600)
    if identity.is_own:
        os.chown(path, identity.uid, identity.gid)


def _published(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []


class Publisher:
    """Copies the checkpoints of one execution out of its workspace.

    Args:
        source: What is `/forge/checkpoint` inside.
    """

    def __init__(self, plan: CheckpointPlan, execution_id: str, source: Path, caps: OutputSettings, max_bytes: int) -> None:
        self._folder, self._execution_id, self._source = Path(plan.folder), execution_id, source
        self._caps, self._max_bytes = caps, max_bytes
        self._seen = self._changed()
        self._helper = 0
        self._next = 0.0
        self._took = mmap.mmap(-1, _SECONDS.size)  # shared with the helpers

    def look(self) -> None:
        """Publish, beside what else goes on, what was put there since the last look. Returns at once."""
        now = time.monotonic()
        if self._helper:
            pid, status = os.waitpid(self._helper, os.WNOHANG)
            if pid == 0:
                return
            self._helper = 0
            self._next = now + _SHARE * _SECONDS.unpack(self._took[:])[0]
            if status != 0:  # it was changed meanwhile, or there is no room
                self._seen = 0
        if now < self._next or (changed := self._changed()) == self._seen:
            return
        self._seen = changed
        supervisor = os.getpid()
        self._helper = os.fork()
        if self._helper == 0:
            status = 1
            with contextlib.suppress(BaseException):
                linux.die_with_parent(9)
                if os.getppid() == supervisor and self._publish():
                    status = 0
            self._took[:] = _SECONDS.pack(time.monotonic() - now)
            os._exit(status)

    def finish(self) -> None:
        """Publish what the end has left, now that nothing moves any more."""
        if self._helper:
            os.waitpid(self._helper, 0)
            self._helper = 0
        self._publish()

    def drop(self) -> None:
        """Nothing of it is needed: the analysis has succeeded."""
        if self._helper:
            os.kill(self._helper, 9)
            os.waitpid(self._helper, 0)
            self._helper = 0
        remove_unfinished(self._folder, self._execution_id)

    def _changed(self) -> int:
        return os.stat(self._source).st_mtime_ns

    def _publish(self) -> bool:
        """Whether the latest checkpoint is now what is in the workspace."""
        before = self._changed()
        with os.scandir(self._source) as entries:
            if not any(not entry.name.startswith(".") for entry in entries):
                return True  # an analysis that has removed its checkpoint has not said that it wants to begin again
        remove_unfinished(self._folder, self._execution_id)
        unfinished = self._folder / f"{_UNFINISHED}{self._execution_id}"
        (unfinished / "files").mkdir(mode=0o700, parents=True)
        try:
            collected = collect_outputs(self._source, unfinished / "files", {}, self._caps, self._max_bytes, hidden=False)
            if self._changed() != before or not collected.outputs:
                return False
            there = _published(self._folder)
            number = 1 + max((int(name.partition("-")[0]) for name in there), default=0)
            os.rename(unfinished / "files", self._folder / f"{number:08d}-{self._execution_id}")
            sync_folder(self._folder)
            for name in there:
                shutil.rmtree(self._folder / name, ignore_errors=True)
            return True
        finally:
            remove_unfinished(self._folder, self._execution_id)
