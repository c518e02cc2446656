"""A step's log as Dagster shows it: the log files of its execution themselves, under a second name.

Dagster captures a process' standard output; here steps are threads of one process, and their output is an execution's.
A hard link costs nothing, is live from the first byte, and is the same bytes for ever: Forge only ever appends to a log.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from dagster._core.storage.compute_log_manager import ComputeIOType, ComputeLogManager
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager

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

    def show(self, stream: str, path: Path) -> None:
        """Show the file at `path`, at once if it is there and the file system has links."""
        self._wanted[stream] = path
        self.refresh()

    def refresh(self) -> None:
        """Look again for files that were not there yet."""
        if isinstance(self._manager, LocalComputeLogManager):
            for stream, path in list(self._wanted.items()):
                with contextlib.suppress(OSError):  # it is not there yet, or on another file system: it is copied in the end
                    shown = Path(self._manager.get_captured_local_path(self._log_key, IO_TYPE_EXTENSION[_KINDS[stream]]))
                    shown.parent.mkdir(parents=True, exist_ok=True)
                    os.link(path, shown)
                    del self._wanted[stream]

    def complete(self) -> None:
        """Nothing more will come: copy what could not be linked, and tell Dagster.

        Raises:
            OSError: The disk under Dagster's logs is full, or the like.
        """
        self.refresh()
        for stream, path in self._wanted.items():
            with (
                contextlib.suppress(FileNotFoundError),
                open(path, "rb") as file,
                self._manager.open_log_stream(self._log_key, _KINDS[stream]) as shown,
            ):
                if shown is not None:
                    shutil.copyfileobj(file, getattr(shown, "buffer", shown))
        self._wanted.clear()
        if isinstance(self._manager, LocalComputeLogManager):
            done = Path(self._manager.get_captured_local_path(self._log_key, "complete"))
            done.parent.mkdir(parents=True, exist_ok=True)
            done.touch()
