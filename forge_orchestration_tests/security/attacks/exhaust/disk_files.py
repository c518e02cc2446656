"""Makes a million files, or as many as it gets; where nobody stops it, it stops at 20,000, which the host can bear."""

import os

from evidence import attempt, done, say

made = 0


def million():
    global made
    for number in range(20_000):
        os.close(os.open(f"/forge/scratch/{number}", os.O_CREAT | os.O_WRONLY))
        made += 1


attempt("a million files", million)
for kind, make in (("folder", os.mkdir), ("fifo", os.mkfifo), ("link", lambda path: os.symlink("x" * 500, path))):
    attempt(kind, make, f"/forge/outputs/{kind}")
say(made=made)
done()
raise SystemExit(1)
