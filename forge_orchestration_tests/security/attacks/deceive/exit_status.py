"""Ends with a status that says something else than what happened: killed for its memory, by a time limit, by a signal."""

import os

from evidence import TARGETS, done

done()
os._exit(TARGETS["status"])
