"""Looks around above each thing that was mounted, where other people's files lie on the host."""

import os
import sys

from evidence import done, say

starts = {sys.base_prefix, "/forge/runtime", "/forge/inputs/folder", os.path.realpath(sys.executable)}
seen = {}
for start in starts:
    while start != "/":
        start = os.path.dirname(start)
        if not start.startswith(("/usr", "/forge")) and not start.startswith(sys.base_prefix):
            seen[start] = sorted(os.listdir(start))
say(folders=seen)
done()
