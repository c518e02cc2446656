"""Makes files in its `/tmp` and `/dev/shm` under the names of the host's, and removes and replaces them there."""

import os

from evidence import TARGETS, attempt, done, read, write

for path in (TARGETS["writable"], TARGETS["shm_file"], TARGETS["open_folder"] + "/harm"):
    attempt(f"overwrite {path}", write, path)
    attempt(f"remove {path}", os.unlink, path)
attempt("same folder", os.makedirs, TARGETS["open_folder"], exist_ok=True)
for name in ("systemd-private-harm", ".X11-unix", "forge-harm"):
    attempt(f"in /tmp {name}", write, f"/tmp/{name}", b"harm", os.O_CREAT)
    attempt(f"in /dev/shm {name}", write, f"/dev/shm/{name}", b"harm", os.O_CREAT)
attempt("/tmp", read, "/tmp")
done()
