"""Moves, removes and covers the mount points themselves, so that later accesses from outside would meet something else."""

import os

from evidence import attempt, done, syscall

for path in (
    "/forge/outputs",
    "/forge/scratch",
    "/forge/checkpoint",
    "/tmp",
    "/forge/inputs/folder",
    "/forge/runtime",
    "/dev/shm",
    "/proc",
    "/forge",
):
    attempt(f"rename {path}", os.rename, path, path + ".old")
    attempt(f"remove {path}", os.rmdir, path)
    attempt(f"into scratch {path}", os.rename, path, "/forge/scratch/taken")
    attempt(f"replace {path}", os.symlink, "/etc", path)
for path in ("/forge/messages", "/forge/inputs/data", "/dev/null", "/proc/keys"):
    attempt(f"remove {path}", os.unlink, path)
attempt("exchange", syscall, "renameat2", -100, b"/forge/outputs", -100, b"/forge/scratch", 2)
done()
