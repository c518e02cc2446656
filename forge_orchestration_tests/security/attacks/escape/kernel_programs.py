"""Loads programs into the kernel: BPF maps and programs, and performance events, which also show it other processes."""

import struct

from evidence import attempt, done, syscall

MAP_CREATE, PROG_LOAD, OBJ_GET, BTF_LOAD = 0, 5, 7, 18
attempt("map", syscall, "bpf", MAP_CREATE, struct.pack("IIIII", 2, 4, 4, 1, 0).ljust(128, b"\0"), 128)
program = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
attempt("program", syscall, "bpf", PROG_LOAD, struct.pack("IIQQ", 1, 2, id(program) + 32, 0).ljust(128, b"\0"), 128)
attempt("pinned", syscall, "bpf", OBJ_GET, bytes(128), 128)
attempt("types", syscall, "bpf", BTF_LOAD, bytes(128), 128)
event = struct.pack("IIQ", 1, 112, 0).ljust(112, b"\0")
for name, pid in (("itself", 0), ("everybody", -1), ("the first process", 1)):
    attempt(f"perf {name}", syscall, "perf_event_open", event, pid, 0 if pid == -1 else -1, -1, 0)
done()
