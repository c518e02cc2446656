"""Checkpoints for a Python analysis: what was done is not done again when it is run anew.

    import forge_checkpoint

    with forge_checkpoint.open() as cp:
        model = cp.state or Model()
        for item in cp.remaining(items):      # in the same order each time
            model.add(item)
            cp.save(model)                    # this item is done, and so are those before it

In a sandbox of Forge this module is there in every runtime. It is one file that needs nothing but Python 3.8, so it may also be
copied beside a script that runs elsewhere; without Forge it writes to a folder that it is given, or to none.

A checkpoint is written beside the last one, brought to the disk, and put in its place: a reader finds one or the other, whole.
When the time is over, or somebody cancels it, an analysis gets SIGTERM: `remaining` then stops before the next item, and the
process ends with status 143.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from typing import Any, Iterable, Iterator  # noqa: UP035 (of a Python that is as old as 3.8)

STOPPED = 128 + signal.SIGTERM


class Checkpoint:
    """The state that an analysis had saved, and how many items it had done; see the module."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._at: int | None = None  # index of the item that is being worked at
        self.done = 0
        self.state: Any = None
        self.stopping = False
        self._before: Any = None
        if path is not None and os.path.exists(path):
            with _open(path, "rb") as file:
                self.done, self.state = pickle.load(file)  # noqa: S301 (what an analysis of the same fingerprint has written, inside a sandbox)

    def __enter__(self) -> Checkpoint:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def remaining(self, items: Iterable[Any]) -> Iterator[Any]:
        """Those of `items`, an iterable in the same order each time, that were not done when the last state was saved."""
        done = self.done
        for index, item in enumerate(items):
            if index < done:
                continue
            if self.stopping:
                sys.stderr.write(f"Stopped before item {index + 1}; a later execution goes on after item {self.done}.\n")
                sys.exit(STOPPED)
            self._at = index
            yield item
        self._at = None

    def save(self, state: Any) -> None:
        """Keep `state`, anything that can be pickled, and that the present item and all before it are done."""
        if self._at is not None:
            self.done = self._at + 1
        self.state = state
        if self._path is None:
            return
        folder, name = os.path.split(self._path)
        beside = os.path.join(folder, "." + name)  # Forge takes no file whose name begins with a dot for a checkpoint
        with _open(beside, "wb") as file:
            pickle.dump((self.done, state), file, protocol=4)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._path)


_open = open


def open(folder: str | None = None, name: str = "state") -> Checkpoint:
    """The checkpoint called `name` in `folder`, by default that which Forge keeps from one execution to the next."""
    folder = folder or os.environ.get("FORGE_CHECKPOINT")
    return Checkpoint(os.path.join(folder, name) if folder else None)
