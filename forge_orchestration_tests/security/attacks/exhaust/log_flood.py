"""Writes to its logs without end, and far more than is kept."""

import os

from evidence import TARGETS, done, report_on, say

kept = os.dup(TARGETS["other"])
report_on(kept)
block = (b"harm " * 1000).ljust(65_536, b"\n")
total = 0
while total < TARGETS["bytes"]:
    total += os.write(TARGETS["descriptor"], block)
say(written=total)
done()
