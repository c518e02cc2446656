"""Reads an execution that runs at the same time: its folder, its scratch, its mounts, and through each of its processes."""

from evidence import TARGETS, attempt, done, read

folder, scratch = TARGETS["neighbour"], TARGETS["neighbour_scratch"]
for name in ("record.json", "plan.json", "stdout.log", "messages.fifo"):
    attempt(name, read, f"{folder}/{name}")
for name in ("", "scratch", "outputs", "tmp"):
    attempt(f"scratch {name}", read, f"{scratch}/{name}")
attempt("image", read, f"{scratch}.img")
for pid in TARGETS["neighbour_pids"]:
    for name in ("environ", "mem", "maps", "cmdline", "cwd", "root/forge/scratch", "fd"):
        attempt(f"/proc/{pid}/{name}", read, f"/proc/{pid}/{name}")
done()
