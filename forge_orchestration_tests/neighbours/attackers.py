"""Eight hostile executions at a time, through `forge_orchestration.run`, kept going: one that its limit ended is started again."""

from __future__ import annotations

import threading
import time
from collections import Counter
from types import TracebackType

from forge_orchestration import ExecutionRecord
from forge_orchestration.model.messages import Message

ATTACKERS = 8
_READY_S = 60.0

# all of them first ask for the short time slice that a neighbour has; it is refused
_SHORT_SLICE = """
import os
try: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
except PermissionError: pass
"""
# each says "ready" when its attack begins, and goes on until it is ended
_CPU = {
    "burners": """
import os
for _ in range(7): os.fork() or exec("while True: pass")
print("ready", flush=True)
while True: pass
""",
    "system calls": """
import os, threading
for _ in range(3): os.fork()
print("ready", flush=True)
while True: os.stat("/usr/bin/env"); os.sched_yield()
""",
    "wake-ups": """
import threading, time
def nap():
    while True: time.sleep(0.00002)
for _ in range(40): threading.Thread(target=nap, daemon=True).start()
print("ready", flush=True)
nap()
""",
    "ping-pong": """
import os
for _ in range(7):
    if os.fork() == 0: break
print("ready", flush=True)
(r1, w1), (r2, w2) = os.pipe(), os.pipe()
if os.fork() == 0:
    while os.read(r1, 1): os.write(w2, b"x")
while os.write(w1, b"x"): os.read(r2, 1)
""",
}
_MEMORY = {
    "touch and free": """
import mmap
print("ready", flush=True)
while True:
    with mmap.mmap(-1, SIZE * 8 // 10) as area:
        for at in range(0, len(area), 4096): area[at] = 1
""",
    "fork and copy": """
import mmap, os
area = mmap.mmap(-1, SIZE // 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, len(area), 4096): area[at] = 1
print("ready", flush=True)
while True:
    children = []
    for _ in range(2):
        if (pid := os.fork()) == 0:
            for at in range(0, len(area), 4096): area[at] = 2
            os._exit(0)
        children.append(pid)
    for pid in children: os.waitpid(pid, 0)
""",
    "hit the limit": """
print("ready", flush=True)
kept = []
while True: kept.append(bytearray(1 << 20))
""",
    "shared memory": """
import os
print("ready", flush=True)
while True:
    with open("/dev/shm/x", "wb") as file:
        for _ in range(SIZE * 8 // 10 >> 20): file.write(bytes(1 << 20))
""",
}
_DISK = {
    "fsync": """
import os
fd = os.open("x", os.O_RDWR | os.O_CREAT)
print("ready", flush=True)
while True:
    for block in range(1000): os.pwrite(fd, os.urandom(4096), block * 4096); os.fsync(fd)
""",
    "large and fsync": """
import os
data = os.urandom(1 << 20)
print("ready", flush=True)
while True:
    with open("x", "wb") as file:
        for _ in range(64): file.write(data)
        file.flush(); os.fsync(file.fileno())
""",
    "small files": """
import os
print("ready", flush=True)
while True:
    for number in range(500):
        fd = os.open(f"f{number}", os.O_WRONLY | os.O_CREAT); os.write(fd, bytes(5000)); os.fsync(fd); os.close(fd)
    for number in range(500): os.unlink(f"f{number}")
    os.sync()
""",
    "flood": """
import os
data = os.urandom(1 << 20)
print("ready", flush=True)
while True:
    with open("x", "wb") as file:
        for _ in range(400): file.write(data)
""",
}
GROUPS = {"cpu": _CPU, "memory": _MEMORY, "disk": _DISK}


class Attack:
    """`ATTACKERS` executions of one group, from `with` (when all have begun) to the end of it.

    Attributes:
        records: Every execution that ended.
    """

    def __init__(self, group: str, memory_bytes: int, cpus: float) -> None:
        self._programs = list(GROUPS[group].values())
        self._limits = {
            "memory": memory_bytes, "cpus": cpus, "pids": 64, "scratch": 512 * 2**20, "wall_time": "30min", "grace": 0,
        }  # fmt: skip
        self._cancel = threading.Event()
        self._begun = [threading.Event() for _ in range(ATTACKERS)]
        self._threads = [threading.Thread(target=self._keep_going, args=(number,)) for number in range(ATTACKERS)]
        self._errors: list[BaseException] = []
        self.records: list[ExecutionRecord] = []

    def __enter__(self) -> Attack:
        try:
            for thread in self._threads:
                thread.start()
            deadline = time.monotonic() + _READY_S
            for begun in self._begun:
                if not begun.wait(max(0.0, deadline - time.monotonic())):
                    raise RuntimeError(f"not all of {ATTACKERS} attackers began within {_READY_S:g} s")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cancel.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        if self._errors and error is None:
            raise self._errors[0]

    def told(self) -> str:
        """What they did, for the reader: nobody should believe in neighbours that were left alone."""
        reasons = Counter(str(record.end_reason) for record in self.records)
        cpu_s = sum(_value(record.usage.cpu_user_s) + _value(record.usage.cpu_system_s) for record in self.records)
        peak = max(_value(record.usage.peak_memory_bytes) for record in self.records)
        written = sum(_value(record.usage.io_write_bytes) for record in self.records)
        return (
            f"{len(self.records)} executions ({', '.join(f'{count} {reason}' for reason, count in reasons.items())}), "
            f"{cpu_s:.1f} s of processor time, {peak / 2**20:.0f} MiB at most each, {written / 2**20:.0f} MiB written"
        )

    def _keep_going(self, number: int) -> None:
        import forge_orchestration

        program = _SHORT_SLICE + self._programs[number % len(self._programs)].replace("SIZE", str(self._limits["memory"]))
        listener = _Begun(self._begun[number])
        try:
            while not self._cancel.is_set():
                self.records.append(
                    forge_orchestration.run(["python", "-c", program], limits=self._limits, listener=listener, cancel=self._cancel)
                )
        except BaseException as error:
            self._errors.append(error)


class _Begun:
    """A listener that waits for the first word of an attacker."""

    def __init__(self, begun: threading.Event) -> None:
        self._begun = begun

    def on_started(self, record: ExecutionRecord) -> None:
        pass

    def on_log(self, stream: str, data: bytes) -> None:
        if stream == "stdout":
            self._begun.set()

    def on_message(self, message: Message) -> None:
        pass


def _value(measured: object) -> float:
    return getattr(measured, "value", 0.0)
