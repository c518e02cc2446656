"""Looks that may take longer than Dagster gives a sensor's tick: a database of many gigabytes, a server that does not answer.

What is not done in time goes on in the background, once for each target, and a later tick has its result.
"""

import threading

from forge_orchestration.engine import Engine
from forge_orchestration.operations.inspection import Inspection, inspect


class Lookout:
    """Remembers which looks are under way in this process."""

    def __init__(self) -> None:
        self._under_way: dict[str, _Look] = {}
        self._lock = threading.Lock()

    def look(self, engine: Engine, target: str, timeout_s: float) -> Inspection | None:
        """A quick look at `target`; None if it is not done within `timeout_s`, and then the next call goes on waiting for it."""
        with self._lock:
            if (look := self._under_way.get(target)) is None:
                look = self._under_way[target] = _Look(engine, target)
                look.start()
        look.join(timeout_s)
        with self._lock:
            if look.is_alive():
                return None
            self._under_way.pop(target, None)
        if look.error is not None:
            raise look.error
        return look.inspection


class _Look(threading.Thread):
    """A daemon: it ends with the code server, whatever it waits for."""

    def __init__(self, engine: Engine, target: str) -> None:
        super().__init__(name=f"look at {target}", daemon=True)
        self._engine, self._target = engine, target
        self.inspection: Inspection | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Look."""
        try:
            self.inspection = inspect(self._engine, self._target, full=False)
        except BaseException as error:  # raised where somebody waits for it
            self.error = error
