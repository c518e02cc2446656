"""Changes what is recorded of it: the record, the logs, the store; by path, beside the message channel, through its own pipes."""

import fcntl
import os

from evidence import TARGETS, attempt, done, report_on, write

for folder in (TARGETS["victim"], TARGETS["neighbour"]):
    for name in ("record.json", "stdout.log", "plan.json", "messages.jsonl"):
        attempt(f"{name} of {os.path.basename(folder)}", write, f"{folder}/{name}")
attempt("store", write, f"{TARGETS['home']}/store.db")
attempt("new store", write, f"{TARGETS['home']}/harm.db", b"harm", os.O_CREAT)
attempt("beside the channel", write, "/forge/messages/../record.json")
attempt("channel as a folder", os.open, "/forge/messages/.", os.O_RDONLY)
channel = os.open("/forge/messages", os.O_PATH)
attempt("beneath the channel", os.open, "record.json", os.O_WRONLY, dir_fd=channel)
attempt("remove the channel", os.unlink, "/forge/messages")
for fd, name in ((1, "stdout"), (2, "stderr")):
    attempt(f"truncate {name}", os.ftruncate, fd, 0)
    attempt(f"rewind {name}", os.lseek, fd, 0, os.SEEK_SET)
    attempt(f"beneath {name}", os.open, "record.json", os.O_WRONLY, dir_fd=fd)
    attempt(f"beneath the link of {name}", write, f"/proc/self/fd/{fd}/../record.json")
report_on(os.dup(1))
attempt("lock own log", fcntl.flock, 1, fcntl.LOCK_EX | fcntl.LOCK_NB)
done()
