"""Asks in four threads for what is always refused: somebody outside has to answer each call, outside of every limit."""

import threading
import time

from evidence import attempt, done, say, syscall

SECONDS, MOST = 2, 50_000
made = [0] * 4
begin = threading.Event()


def ask(number):
    begin.wait()
    deadline = time.monotonic() + SECONDS
    while made[number] < MOST and time.monotonic() < deadline:
        try:
            syscall("ptrace", 0, 0, 0, 0)
        except PermissionError:
            made[number] += 1


threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(made))]
for thread in threads:
    thread.start()
attempt("once", syscall, "ptrace", 0, 0, 0, 0)
say(begun=True)
begin.set()
for thread in threads:
    thread.join()
say(asked=sum(made))
done()
