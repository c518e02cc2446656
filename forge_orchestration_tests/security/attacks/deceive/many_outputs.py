"""Leaves more outputs than anybody wants to keep."""

import os

from evidence import TARGETS, done, say

for number in range(TARGETS["count"]):
    os.close(os.open(f"/forge/outputs/{number:06}", os.O_CREAT | os.O_WRONLY))
say(made=TARGETS["count"])
done()
