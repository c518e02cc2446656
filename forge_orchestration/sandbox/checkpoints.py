"""Checkpoints on their way out of a sandbox while it runs, and into the next one.

What an analysis puts into `/forge/checkpoint` under a name that does not begin with a dot is a checkpoint. It is copied out as
soon as it is there, by a helper of the supervisor's, and the copy gets its place when it is whole and on the disk: whoever is
killed, and be it the host, leaves the last whole one. In a folder a fingerprint,

    checkpoints/<fingerprint>/00000007-<execution id>/

the highest number is the one to go on from. As with outputs nothing in it is trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from forge_orchestration.errors import SandboxError
from forge_orchestration.executions.folder import sync_folder
from forge_orchestration.executions.outputs import collect_outputs
from forge_orchestration.model.sections import OutputSettings
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.plan import CheckpointPlan

_UNFINISHED, _GONE = ".new-", ".gone-"
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


def discard(path: Path) -> None:
    """Remove a checkpoint, or all of a fingerprint: at once under its name, so that nobody ever takes half of it for one."""
    gone = path.with_name(f"{_GONE}{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def held(folder: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Keep others from removing what is in the folder of a fingerprint (`shared`), or from reading it; False if they do just now."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)


def restore(plan: CheckpointPlan, target: Path, identity: Identity) -> tuple[str, int]:
    """Give a new execution the latest checkpoint; returns its name and its size in bytes, or no name if there is none any more.

    Raises:
        SandboxError: It does not fit, or cannot be read.
    """
    folder = Path(plan.folder)
    with held(folder, shared=True) as there:
        name = latest(folder) if there else ""
        if not name:
            return "", 0
        try:
            return name, _copy_tree(folder / name, target, identity)
        except OSError as error:
            raise SandboxError(
                f"The checkpoint of execution {made_by(name)} cannot be given to this one: {error.strerror}.",
                "Allow more scratch, or start anew: --cache refresh",
            ) from error


def _copy_tree(source: Path, target: Path, identity: Identity) -> int:
    def fail(error: OSError) -> None:
        raise error

    total = 0
    for root, folders, files in os.walk(source, onerror=fail):
        there = target / Path(root).relative_to(source)
        for name in folders:
            (there / name).mkdir(mode=0o700)
            _hand_over(there / name, identity)
        for name in files:
            shutil.copyfile(Path(root, name), there / name)
            _hand_over(there / name, identity)
            total += (there / name).stat().st_size
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
                if os.getppid() == supervisor and not self._publish():
                    status = 0
            self._took[:] = _SECONDS.pack(time.monotonic() - now)
            os._exit(status)

    def finish(self) -> str:
        """Publish what the end has left, now that nothing moves any more; returns why it cannot be, or nothing."""
        if self._helper:
            os.waitpid(self._helper, 0)
            self._helper = 0
        return self._publish()

    def drop(self) -> None:
        """Nothing of it is needed: the analysis has succeeded."""
        if self._helper:
            os.kill(self._helper, 9)
            os.waitpid(self._helper, 0)
            self._helper = 0
        remove_unfinished(self._folder, self._execution_id)

    def _changed(self) -> int:
        return os.stat(self._source).st_mtime_ns

    def _publish(self) -> str:
        """Why what is in the workspace is not the latest checkpoint now: a sentence, or nothing."""
        before = self._changed()
        with os.scandir(self._source) as entries:
            if not any(not entry.name.startswith(".") for entry in entries):
                return ""  # an analysis that has removed its checkpoint has not said that it wants to begin again
        remove_unfinished(self._folder, self._execution_id)
        unfinished = self._folder / f"{_UNFINISHED}{self._execution_id}"
        (unfinished / "files").mkdir(mode=0o700, parents=True)
        try:
            collected = collect_outputs(self._source, unfinished / "files", {}, self._caps, self._max_bytes, hidden=False)
            if collected.rejected:  # a part of it is no checkpoint
                one = collected.rejected[0]
                return f"Its last checkpoint could not be kept, because of {one.path}: {one.why}."
            # a file that was replaced meanwhile was read whole all the same, from where it was; of a folder that is not so
            if self._changed() != before and any("/" in one.path for one in collected.outputs):
                return "Its last checkpoint could not be kept, because it was changed meanwhile."
            if not collected.outputs:
                return "Its last checkpoint could not be kept, because there is no file in it."
            self._put_in_place(unfinished / "files")
            return ""
        finally:
            remove_unfinished(self._folder, self._execution_id)

    def _put_in_place(self, files: Path) -> None:
        there = _published(self._folder)
        number = 1 + max((int(name.partition("-")[0]) for name in there), default=0)
        os.rename(files, self._folder / f"{number:08d}-{self._execution_id}")
        sync_folder(self._folder)
        with held(self._folder, wait=False) as alone:
            for name in there if alone else ():  # who reads one just now has it to the end; it goes the next time
                discard(self._folder / name)
