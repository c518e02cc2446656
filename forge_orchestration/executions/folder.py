"""The folder of one execution, and the record in it.

executions/<id>/
  record.json      the facts; replaced whole, never edited
  stdout.log  stderr.log  messages.jsonl
  outputs/         what was collected
  analysis/        the analysis' own files as they were run
  plan.json        how it was started; the record's native_id says by whom it is watched
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import msgspec

from forge_orchestration.errors import SpecError, StoreError
from forge_orchestration.model.record import ExecutionRecord, record_from_json

_ID = re.compile(r"[0-9]{8}T[0-9]{9}-[0-9a-f]{8}")


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
        if not _ID.fullmatch(execution_id):
            raise SpecError(f"'{execution_id[:80]}' is no execution id.", "List them with: forge executions list")
        self.id = execution_id
        self.path = executions_dir / execution_id

    def create(self) -> None:
        """Make it, closed to other users."""
        self.path.mkdir(mode=0o700)
        (self.path / "outputs").mkdir(mode=0o700)

    def remove(self) -> None:
        """Remove it with all it holds; only for an execution that never came to be."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def record_path(self) -> Path:
        return self.path / "record.json"

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
        """Replace the record; a reader at any moment finds the old or the new one, whole."""
        write_atomically(self.record_path, record.to_json().encode() + b"\n")

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
        except (OSError, msgspec.DecodeError) as error:
            raise StoreError(f"The record {self.record_path} cannot be read: {error}.") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file aside and move it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, path)
