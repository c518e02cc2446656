"""A process, told apart from any later one with the same pid: who supervises an execution, who executes a run."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal

import msgspec

from forge_orchestration.errors import SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.sandbox import linux

_OURS = re.compile(r"\d+:\d+:[0-9a-f-]+")


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """One process of one boot."""

    pid: int
    start_time: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The process that has this pid now; None if there is none."""
        start_time = linux.start_time(pid)
        return None if start_time is None else cls(pid=pid, start_time=start_time, boot_id=linux.boot_id())

    @property
    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        return linux.boot_id() == self.boot_id and linux.start_time(self.pid) == self.start_time

    def send(self, number: int) -> None:
        """Send a signal to that very process; nothing if it is gone."""
        if not self.is_alive:  # or it may be a thread's number by now, which cannot be opened
            return
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(self.pid)
            try:
                if self.is_alive:  # the descriptor was there first, so it stands for the process that was looked at
                    signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it has ended; False if it has not within `timeout_s`."""
        if not self.is_alive:
            return True
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            waiting = select.poll()
            waiting.register(fd, select.POLLIN)
            return not self.is_alive or bool(waiting.poll(None if timeout_s is None else timeout_s * 1000))
        finally:
            os.close(fd)

    @property
    def native_id(self) -> str:
        """As the record has it."""
        return f"{self.pid}:{self.start_time}:{self.boot_id}"


def runs_elsewhere(folder: ExecutionFolder) -> bool:
    """Whether an execution that has not ended is in the hands of an executor that has no supervisor on this host."""
    try:
        record = folder.read_record()
    except SpecError:
        return False
    return record.native_id is not None and not record.status.is_final and not _OURS.fullmatch(record.native_id)


def read_supervisor(folder: ExecutionFolder) -> ProcessIdentity | None:
    """The supervisor of an execution, by its record's `native_id`; None if it has none on this host, or no record."""
    try:
        native_id = folder.read_record().native_id
    except SpecError:
        return None
    if native_id is None or not _OURS.fullmatch(native_id):
        return None
    pid, start_time, boot_id = native_id.split(":", 2)
    return ProcessIdentity(pid=int(pid), start_time=int(start_time), boot_id=boot_id)
