"""Prints what the test gives, byte for byte: escape sequences, bytes that are no text, a line without end, a forged record."""

import base64
import os

from evidence import TARGETS, done, report_on

data = base64.b64decode(TARGETS["data"]) * TARGETS["times"]
written = 0
while written < len(data):
    written += os.write(1, data[written : written + 65_536])
report_on(2)
done()
