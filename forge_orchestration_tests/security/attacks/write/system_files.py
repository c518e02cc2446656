"""Writes to the system's files and folders, as they are seen inside: programs, libraries, the loader's cache, accounts."""

import os

from evidence import attempt, done, write

OLD = (
    "/usr/bin/env", "/usr/bin/setpriv", "/usr/bin/python3", "/etc/passwd", "/etc/group", "/etc/hosts", "/etc/nsswitch.conf",
    "/etc/ld.so.cache", "/forge/README", "/forge/params.json",
)  # fmt: skip
for path in OLD:
    if os.path.exists(path):
        attempt(f"write {path}", write, path)
        attempt(f"truncate {path}", os.truncate, path, os.stat(path).st_size)
        attempt(f"remove {path}", os.unlink, path)
        attempt(f"chmod {path}", os.chmod, path, 0o777)
for folder in (
    "/",
    "/etc",
    "/usr",
    "/usr/bin",
    "/usr/local/bin",
    "/usr/lib",
    "/forge",
    "/forge/inputs",
    "/forge/analysis",
    "/dev",
    "/proc",
    "/proc/sys",
    "/root",
):
    attempt(f"new in {folder}", write, f"{folder}/harm", b"harm", os.O_CREAT)
    attempt(f"folder in {folder}", os.mkdir, f"{folder}/harm.d")
    attempt(f"link in {folder}", os.symlink, "/forge/scratch", f"{folder}/harm.l")
done()
