"""Writes to the message channel without end: messages that are each in order, or nothing but ends of lines."""

import os
import resource
import time

from evidence import TARGETS, done, say

channel = os.open("/forge/messages", os.O_WRONLY)
if TARGETS["form"] == "valid":
    block = b'{"type": "log", "message": "harm"}\n' * 100
elif TARGETS["form"] == "long":
    text = b'{"type": "metadata", "values": {' + b", ".join(b'"%d": "%s"' % (n, b"x" * 3900) for n in range(15)) + b"}}\n"
    block = text
else:
    block = b"\n" * 65_536
total = 0
say(attempt="begun", error=None)
while total < TARGETS["bytes"]:
    total += os.write(channel, block)
say(written=total, own_cpu_s=sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
deadline = time.monotonic() + 10
while TARGETS["wait"] and not os.path.exists("/forge/inputs/folder/looked") and time.monotonic() < deadline:
    time.sleep(0.01)
done()
