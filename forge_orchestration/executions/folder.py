"""The folder of one execution, and the record in it.

executions/<id>/
  record.json      the facts; replaced whole, never edited
  stdout.log  stderr.log  messages.jsonl
  outputs/         what was collected
  analysis/        the analysis' own files as they were run
  request.json     what was asked for
  inputs.json      which files were read
  plan.json        how it was started; the record's native_id says by whom it is watched
  lock             empty; whoever holds the kernel's lock on it may end the execution

Who brings an execution to its end holds the lock on its folder: its supervisor from its first moment to its last, or, when that is
gone, whoever closes the record in its place. So no two ever do, and one that was closed as lost never begins after all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from forge_orchestration.errors import SpecError, StoreError
from forge_orchestration.model.record import ExecutionRecord, record_from_json

_LOCK = "lock"
_TO_LOCK = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_HERE = os.urandom(3).hex()  # another host that sees the folder may have a process of the same number
_ID = re.compile(r"[0-9]{8}T[0-9]{9}-[0-9a-f]{8}")
PARTIAL_OUTPUT = ".output.partial"
"""Beside `outputs/`: the one output that is being copied."""


def is_execution_id(name: str) -> bool:
    """Whether an execution could be called so."""
    return _ID.fullmatch(name) is not None


def new_execution_id() -> str:
    """An id that sorts by time and is unique without asking anyone: `20260102T030405678-9f86d081`."""
    now = time.time()
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}{int(now * 1000) % 1000:03d}-{os.urandom(4).hex()}"


class ExecutionFolder:
    """Paths and files of one execution.

    Raises:
        SpecError: `execution_id` is none, whatever folder it may name.
    """

    def __init__(self, executions_dir: Path, execution_id: str) -> None:
        if not is_execution_id(execution_id):
            raise SpecError(f"'{execution_id[:80]}' is no execution id.", "List them with: forge executions list")
        self.id = execution_id
        self.path = executions_dir / execution_id
        self.unsynced: set[Path] = set()
        """Folders in it whose names are to be on the disk before a final record is."""

    def create(self) -> None:
        """Make it, closed to other users."""
        self.path.mkdir(mode=0o700)
        (self.path / "outputs").mkdir(mode=0o700)
        os.close(os.open(self.path / _LOCK, _TO_LOCK, 0o600))

    @property
    def never_began(self) -> bool:
        """Whether it was given up between its row and its first record, or the host's end tore that: nothing of it ran."""
        try:
            return os.stat(self.record_path).st_size == 0 and not any(self.outputs.glob("*"))
        except FileNotFoundError:
            return True

    def remove(self) -> None:
        """Remove it with all it holds; only for an execution that never came to be."""
        import shutil  # no spawner needs it

        shutil.rmtree(self.path, ignore_errors=True)

    def lock(self, *, wait: bool = True, shared: bool = False) -> int | None:
        """Take the lock, which is the kernel's and so ends with its holder; returns a descriptor to close.

        It is on a file, because network file systems know of locks on files alone, and want them open for writing.

        Args:
            shared: With others who only read, and want nobody to remove it meanwhile.

        Returns None if there is no such folder, or, unless `wait`, if another process holds the lock.
        """
        try:
            fd = os.open(self.path / _LOCK, _TO_LOCK, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    @contextlib.contextmanager
    def locked(self, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
        """Hold the lock meanwhile; False if it could not be had (see `lock`)."""
        fd = self.lock(wait=wait, shared=shared)
        try:
            yield fd is not None
        finally:
            if fd is not None:
                os.close(fd)

    def remove_torn(self) -> None:
        """Remove files that a killed process was about to move into place; only for who holds the lock."""
        for pattern in (".*.json.*", PARTIAL_OUTPUT):
            for torn in self.path.glob(pattern):
                torn.unlink(missing_ok=True)

    @property
    def record_path(self) -> Path:
        return self.path / "record.json"

    @property
    def request(self) -> Path:
        """What was asked for."""
        return self.path / "request.json"

    @property
    def outputs(self) -> Path:
        return self.path / "outputs"

    @property
    def analysis(self) -> Path:
        return self.path / "analysis"

    @property
    def messages(self) -> Path:
        return self.path / "messages.jsonl"

    def log(self, stream: str) -> Path:
        """The log of `stdout` or `stderr`."""
        return self.path / f"{stream}.log"

    def write_record(self, record: ExecutionRecord) -> None:
        """Replace the record; a reader at any moment finds the old or the new one, whole. A final one outlasts a loss of power."""
        data, final = record.to_json().encode() + b"\n", record.status.is_final
        write_atomically(self.record_path, data, durable=final, after=self.unsynced if final else ())
        if final:
            self.unsynced.clear()

    def read_record(self) -> ExecutionRecord:
        """The record as it is now.

        Raises:
            SpecError: There is none.
            StoreError: It cannot be read.
        """
        try:
            return record_from_json(self.record_path.read_bytes())
        except FileNotFoundError:
            raise SpecError(f"There is no execution {self.id}.", "List them with: forge executions list") from None
        except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
            raise StoreError(f"The record {self.record_path} cannot be read: {error}.") from error


def write_atomically(path: Path, data: bytes, *, durable: bool = False, after: Iterable[Path] = ()) -> None:
    """Write a file aside and move it into place; if `durable`, it is on the disk then.

    Args:
        after: Folders whose names have to be on the disk before. Where one journal holds all, the file's own way there takes them along.
    """
    temporary = path.with_name(f".{path.name}.{_HERE}{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
        for folder in after:
            sync_folder(folder)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
