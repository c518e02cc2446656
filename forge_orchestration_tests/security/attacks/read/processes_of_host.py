"""Looks for processes outside: by the numbers that the host gives them, by trying every number, and by asking about them."""

import os

from evidence import TARGETS, attempt, done, read, say, syscall

for name in ("controller", "supervisor"):
    pid = TARGETS[f"{name}_pid"]
    for file in ("environ", "cmdline", "status", "root", "fd"):
        attempt(f"{name} {file}", read, f"/proc/{pid}/{file}")
    attempt(f"{name} signal", os.kill, pid, 0)
    attempt(f"{name} pidfd", syscall, "pidfd_open", pid, 0)
    attempt(f"{name} session", os.getsid, pid)
    attempt(f"{name} affinity", os.sched_getaffinity, pid)


def answers(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


say(
    answering=[pid for pid in range(1, 70_000) if answers(pid)],
    listed=(listed := sorted(int(one) for one in os.listdir("/proc") if one.isdigit())),
    names=[read(f"/proc/{pid}/comm").decode().strip() for pid in listed],
    own=os.getpid(),
)
done()
