"""What the controller of an execution writes of it: its row, its record, and nothing at all if it never came to be."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import msgspec

from forge_orchestration.errors import StoreError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.store import Store
from forge_orchestration.model.reasons import EndReason
from forge_orchestration.model.record import ExecutionRecord

_LEAST_ROOM_BYTES = 2**20  # for a record, its logs' beginnings, and the store


class Journal:
    """Writes records of the deployment at `home`, and their rows."""

    def __init__(self, home: Path, store: Store) -> None:
        self._home, self._store = home, store

    def begin(self, record: ExecutionRecord, pid: int, start_time: int) -> None:
        """The execution's row, claimed by the controller that this is.

        Raises:
            StoreError: The disk is full, or the store cannot be written.
        """
        space = os.statvfs(self._home)
        if space.f_bavail * space.f_frsize < _LEAST_ROOM_BYTES:
            raise StoreError(f"The disk of FORGE_HOME {self._home} is full.", "Make room, or set FORGE_HOME to another disk.")
        self._store.begin(record, pid, start_time)

    def note(self, record: ExecutionRecord, folder: ExecutionFolder, **changes: object) -> ExecutionRecord:
        """The record with these changes, written and indexed."""
        record = msgspec.structs.replace(record, **changes)
        try:
            folder.write_record(record)
        except OSError as error:
            raise not_written(folder, error) from error
        self._store.save(record)
        return record

    def add(self, record: ExecutionRecord, folder: ExecutionFolder) -> None:
        """Write what was found out of an execution after its end, when its supervisor writes no more."""
        try:
            with folder.locked():
                folder.write_record(record)
        except OSError as error:
            raise not_written(folder, error) from error

    def close_unstarted(self, record: ExecutionRecord, folder: ExecutionFolder, reason: EndReason, message: str) -> ExecutionRecord:
        """End an execution that has not begun; returns its final record, which is another's if it has begun after all."""
        changes = {"status": reason.status, "end_reason": reason, "message": message, "ended_at": time.time()}
        with folder.locked():  # a supervisor that came to it after all has ended then, or will find it closed
            there = folder.read_record()
            if there.status.is_final:
                self._store.save(there)
                return there
            try:
                return self.note(record, folder, **changes)
            except StoreError:
                self.forget(folder)
                raise

    def forget(self, folder: ExecutionFolder) -> None:
        """Remove what there is of an execution that never came to be; a row that cannot be removed is left to `forge gc`."""
        folder.remove()
        with contextlib.suppress(StoreError):
            self._store.forget(folder.id)


def not_written(folder: ExecutionFolder, error: OSError) -> StoreError:
    """A folder that cannot be written, as a sentence."""
    return StoreError(f"The execution's folder {folder.path} cannot be written: {error.strerror}.", "Is the disk full?")
