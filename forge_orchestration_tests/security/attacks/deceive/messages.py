"""Writes what the test gives to the message channel, byte for byte: forged, broken, too long, too deep, half."""

import base64
import os

from evidence import TARGETS, done, say

data = base64.b64decode(TARGETS["data"]) * TARGETS["times"]
channel = os.open("/forge/messages", os.O_WRONLY)
say(attempt="begun", error=None)
written = 0
while written < len(data):
    written += os.write(channel, data[written : written + 65_536])
say(written=written)
done()
