"""Reads another process' memory with each call that can: of process 1, and of processes of the host."""

import ctypes

from evidence import TARGETS, attempt, done, read, syscall

buffer = ctypes.create_string_buffer(64)
local = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 64)
remote = (ctypes.c_ulong * 2)(0x400000, 64)
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
for pid in (1, TARGETS["controller_pid"], TARGETS["supervisor_pid"], *TARGETS["neighbour_pids"]):
    attempt(f"process_vm_readv {pid}", syscall, "process_vm_readv", pid, local, 1, remote, 1, 0)
    attempt(f"PTRACE_ATTACH {pid}", syscall, "ptrace", PTRACE_ATTACH, pid, 0, 0)
    attempt(f"PTRACE_SEIZE {pid}", syscall, "ptrace", PTRACE_SEIZE, pid, 0, 0)
    attempt(f"/proc/{pid}/mem", read, f"/proc/{pid}/mem")
done()
