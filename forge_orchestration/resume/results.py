"""Earlier results: found by fingerprint, compared with what was collected, and given to a new execution without a copy."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from pathlib import Path, PurePath

import msgspec

from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.inputs import digest_of_file
from forge_orchestration.executions.store import Store
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import Cleanup, ExecutionRecord, InputFacts, LogFacts, OutputFacts

_FICLONE = 0x40049409
_NO_CLONES = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS)  # whatever the file
_MOST_NAMED = 3
_without_clones: set[int] = set()


class ResultGone(Exception):
    """A result is no longer what it was when it was found."""


class Found(msgspec.Struct, frozen=True):
    """A result that may be reused, if there is one, and what was wrong with later ones: a sentence, or nothing."""

    record: ExecutionRecord | None
    damage: str = ""


def find_result(fingerprint: str, store: Store, executions_dir: Path) -> Found:
    """The latest result of this fingerprint whose outputs are all there and as they were collected."""
    damage = []
    for execution_id in store.results(fingerprint):
        folder = ExecutionFolder(executions_dir, execution_id)
        try:
            record = folder.read_record()
        except ForgeError as error:
            damage.append(f"the result of {execution_id} cannot be reused, because its record cannot be read ({error})")
            continue
        if record.suspect:
            damage.append(f"the result of {execution_id} is not reused, because that execution is suspect")
        elif differing := damaged_outputs(record, folder, store):
            more = f" and {len(differing) - _MOST_NAMED} more" if len(differing) > _MOST_NAMED else ""
            damage.append(f"the result of {execution_id} is damaged: {', '.join(differing[:_MOST_NAMED])}{more}; it is not reused")
        else:
            return Found(record, _sentence(damage))
    return Found(None, _sentence(damage))


def _sentence(parts: list[str]) -> str:
    return f"{'; '.join(parts)[:1].upper()}{'; '.join(parts)[1:]}." if parts else ""


def damaged_outputs(record: ExecutionRecord, folder: ExecutionFolder, store: Store) -> list[str]:
    """Each output that is not what was collected, and why: `clusters.csv is missing`."""
    found = []
    for output in record.outputs:
        try:
            digest, facts = digest_of_file(folder.outputs / output.path, store)
        except FileNotFoundError:
            found.append(f"{output.path} is missing")
        except OSError as error:
            found.append(f"{output.path} cannot be read ({error.strerror})")
        except ForgeError:
            found.append(f"{output.path} is being written to")
        else:
            if digest != output.sha256 or facts.st_size != output.bytes:
                found.append(f"{output.path} was changed")
    return found


def reuse_result(
    source: ExecutionRecord, record: ExecutionRecord, folder: ExecutionFolder, store: Store, why: str
) -> ExecutionRecord:
    """The final record of an execution that takes the result of `source`, whose outputs were just compared; not written yet.

    Args:
        record: Of the new execution, whose folder is empty.
        why: What else is to be said of it: damage that was found.

    Raises:
        OSError: The outputs cannot be had in the new folder.
        ResultGone: It was removed, or an output was changed, since it was found.
    """
    there = ExecutionFolder(folder.path.parent, source.execution_id)
    with there.locked(shared=True) as ours:  # nobody removes it meanwhile
        if not ours or damaged_outputs(source, there, store):
            raise ResultGone
        try:
            logs = _share_all(source, there, folder, store)
        except FileNotFoundError as error:
            raise ResultGone from error
    parents = {PurePath(), *(parent for one in source.outputs for parent in PurePath(one.path).parents)}
    folder.unsynced |= {folder.outputs / path for path in parents}
    now = time.time()
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(source.ended_at or 0))
    said = f"Nothing was run: the result of execution {source.execution_id}, of {when} UTC, was made of the very same."
    return msgspec.structs.replace(
        record, status=Status.SUCCEEDED, end_reason=EndReason.COMPLETED, message=said, exit_code=source.exit_code,
        code=source.code, inputs=_with_sizes(record.inputs, source.inputs), outputs=source.outputs, rejected_outputs=source.rejected_outputs, metadata=source.metadata,
        checks=source.checks, logs=logs, ended_at=now, cleanup=Cleanup(finished_at=now),
        cache=msgspec.structs.replace(record.cache, hit=True, source_execution_id=source.execution_id, why=why, reusable=False),
    )  # fmt: skip


def _share_all(source: ExecutionRecord, there: ExecutionFolder, folder: ExecutionFolder, store: Store) -> dict[str, LogFacts]:
    for output in source.outputs:
        _share_output(there.outputs / output.path, folder.outputs / output.path, output, store)
    logs = {}
    for stream, log in source.logs.items():
        with contextlib.suppress(FileNotFoundError):  # what nobody needs to be right
            _share(there.log(stream), folder.log(stream))
        logs[stream] = msgspec.structs.replace(log, path=str(folder.log(stream)))
    with contextlib.suppress(FileNotFoundError):
        _share(there.messages, folder.messages)
    return logs


def _with_sizes(inputs: list[InputFacts], read: list[InputFacts]) -> list[InputFacts]:
    """Inputs with the sizes of what was read: one that was not fetched this time has none."""
    sizes = {one.sha256: one.bytes for one in read}
    return [msgspec.structs.replace(one, bytes=sizes.get(one.sha256, one.bytes)) for one in inputs]


def _share_output(source: Path, target: Path, output: OutputFacts, store: Store) -> None:
    if "/" in output.path:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = os.lstat(source)
    known = store.digest(before) == output.sha256
    _share(source, target)
    after = os.lstat(target)
    # that a name more changes its `ctime` is no reason to read it again
    if known and (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns):
        store.keep_digest(after, output.sha256)


def _share(source: Path, target: Path) -> None:
    """Let `target` be the same file: a clone where the file system has them, else a second name, else a copy."""
    if _clone(source, target):
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EMLINK, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(source, target, follow_symlinks=False)
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _clone(source: Path, target: Path) -> bool:
    """Make `target` a clone, if that can be. Which file systems have none is remembered: to try makes a file, and removes it."""
    device = os.lstat(source).st_dev
    if device in _without_clones:
        return False
    try:
        with open(source, "rb") as old, open(target, "xb") as new:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            os.fsync(new.fileno())
            return True
    except OSError as error:
        if error.errno not in (*_NO_CLONES, errno.EINVAL, errno.EXDEV):
            raise
        target.unlink()
        if error.errno in _NO_CLONES:
            _without_clones.add(device)
        return False
