"""A step's log as Dagster shows it: the log files of its execution themselves, under a second name.

Dagster captures a process' standard output; here steps are threads of one process, and their output is an execution's.
A hard link costs nothing, is live from the first byte, and is the same bytes for ever: Forge only ever appends to a log.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import dagster as dg
from dagster._core.storage.compute_log_manager import ComputeIOType, ComputeLogManager
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager

MAX_APPENDED_BYTES = 8 * 2**20
_KINDS = {"stdout": ComputeIOType.STDOUT, "stderr": ComputeIOType.STDERR}


class CapturedLogs:
    """Both streams of one step.

    Args:
        instance: Whose logs they are.
        log_key: Under which the run's event says that they are captured.
    """

    def __init__(self, instance: dg.DagsterInstance, log_key: Sequence[str]) -> None:
        self._manager: ComputeLogManager = instance.compute_log_manager
        self._log_key = list(log_key)
        self._wanted: dict[str, Path] = {}
        self._joined: dict[str, BinaryIO] = {}

    def show(self, stream: str, path: Path) -> None:
        """Show the file at `path` and no other, at once if it is there and the file system has links."""
        self._wanted[stream] = path
        self.refresh()

    def append(self, stream: str, heading: str, path: Path) -> None:
        """Show the file at `path` behind all others, of those a beginning: a step that has many executions has one log."""
        with contextlib.suppress(OSError):  # somebody removed it, or the disk is full: its own log is there
            if stream not in self._joined:
                local = isinstance(self._manager, LocalComputeLogManager)
                self._joined[stream] = open(self._shown(stream), "ab") if local else tempfile.TemporaryFile()  # noqa: SIM115
            joined = self._joined[stream]
            with open(path, "rb") as file:
                part = file.read(max(0, MAX_APPENDED_BYTES - joined.tell()))
            if part:
                joined.write(heading.encode() + part + (b"" if part.endswith(b"\n") else b"\n"))
                joined.flush()

    def refresh(self) -> None:
        """Look again for files that were not there yet."""
        if isinstance(self._manager, LocalComputeLogManager):
            for stream, path in list(self._wanted.items()):
                with contextlib.suppress(OSError):  # it is not there yet, or on another file system: it is copied in the end
                    shown = self._shown(stream)
                    if not (shown.exists() and os.path.samefile(path, shown)):
                        shown.unlink(missing_ok=True)  # of an execution that was lost; its log stays in its own folder
                        os.link(path, shown)
                    del self._wanted[stream]

    def complete(self) -> None:
        """Nothing more will come: copy what could not be linked, and tell Dagster.

        Raises:
            OSError: The disk under Dagster's logs is full, or the like.
        """
        self.refresh()
        for stream, path in self._wanted.items():
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                self._copy(stream, file)
        self._wanted.clear()
        for stream, joined in self._joined.items():
            with joined:
                if not isinstance(self._manager, LocalComputeLogManager):
                    joined.seek(0)
                    self._copy(stream, joined)
        self._joined.clear()
        if isinstance(self._manager, LocalComputeLogManager):
            done = Path(self._manager.get_captured_local_path(self._log_key, "complete"))
            done.parent.mkdir(parents=True, exist_ok=True)
            done.touch()

    def _copy(self, stream: str, file: BinaryIO) -> None:
        with self._manager.open_log_stream(self._log_key, _KINDS[stream]) as shown:
            if shown is not None:
                shutil.copyfileobj(file, getattr(shown, "buffer", shown))

    def _shown(self, stream: str) -> Path:
        """Where Dagster looks for a stream in files of its own."""
        assert isinstance(self._manager, LocalComputeLogManager)
        shown = Path(self._manager.get_captured_local_path(self._log_key, IO_TYPE_EXTENSION[_KINDS[stream]]))
        shown.parent.mkdir(parents=True, exist_ok=True)
        return shown
