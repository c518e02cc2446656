"""A controller as a Dagster run worker is one: several executions at once in threads of one process, over one spawner.

    python -m forge_orchestration_tests.faults.controller COUNT GRACE WORD…

Runs the same command COUNT times; SIGTERM cancels them all.
"""

from __future__ import annotations

import signal
import sys
import threading

import forge_orchestration


def main() -> None:
    """Exit status 0 if every execution has a record, whatever it says."""
    count, grace, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    cancel = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=cancel.set).start())
    problems: list[str] = []

    def run() -> None:
        try:
            limits = {"memory": "64MiB", "pids": 40, "scratch": "32MiB", "grace": grace}
            forge_orchestration.run(command, limits=limits, cancel=cancel)
        except forge_orchestration.ForgeError as error:
            problems.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.05)  # a handler runs only between two instructions of this thread
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
