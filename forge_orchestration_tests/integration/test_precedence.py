"""What makes the host's other work go first holds for what an analysis starts, and it cannot take it back."""

from __future__ import annotations

import json
from pathlib import Path

import forge_orchestration
from forge_orchestration.sandbox import linux

_CAP_SYS_RESOURCE = 24
# in a grandchild: what it inherited, and what becomes of its attempts to be like others
PROGRAM = """
import ctypes, json, os, struct, subprocess, sys
INNER = '''
import ctypes, json, os, struct
def attempt(call, *arguments):
    try: call(*arguments)
    except OSError as error: return error.strerror
    return "done"
def score(): return int(open("/proc/self/oom_score_adj").read())
def slice_ns():
    attributes = ctypes.create_string_buffer(48)
    ctypes.CDLL(None).syscall(%d, 0, attributes, 48, 0)
    return struct.unpack("=IIQiIQQQ", attributes.raw)[5]
before = score(), slice_ns()
attempts = [attempt(os.sched_setscheduler, 0, os.SCHED_OTHER, os.sched_param(0)), attempt(os.sched_setparam, 0, os.sched_param(0)),
            attempt(os.write, os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"0")]
print(json.dumps([before, attempts, (score(), slice_ns())]))
'''
subprocess.run([sys.executable, "-c", INNER], check=True)
"""


def may_hold_a_score() -> bool:
    """With CAP_SYS_RESOURCE a score that was raised is also the least; some hosts have taken it from their root."""
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)


def test_what_stands_back_stays_back(forge_home: Path) -> None:
    import pyseccomp

    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "sched_getattr")
    record = forge_orchestration.run(["python", "-c", PROGRAM % number], check=True)
    assert record.isolation is not None and record.isolation.protections["precedence"] == "on"
    assert record.enforced["cpu_weight"].value == 10 and record.enforced["oom_score_adj"].value == 1000
    before, attempts, after = json.loads(Path(record.logs["stdout"].path).read_text())
    assert before[0] == 1000
    assert attempts[:2] == ["Operation not permitted"] * 2
    assert record.violations == {"sched_setscheduler": 1, "sched_setparam": 1}
    if linux.time_slice(0):
        assert before[1] == after[1] == 20_000_000 and record.enforced["cpu_slice_ms"].value == 20
    if may_hold_a_score():
        assert attempts[2] == "Permission denied" and after[0] == 1000
