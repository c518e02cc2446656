"""The peaceful one: it runs beside every attack, holds a secret, and says with each beat that all that it has is as it was.

It ends well when a file named `stop` appears in its input folder, and badly when it finds anything changed.
"""

import contextlib
import os
import socket
import sys
import time

token = os.environ["NEIGHBOUR_TOKEN"]
files = ("/forge/scratch/mine", "/tmp/mine", "/dev/shm/mine", "/forge/checkpoint/mine")
for path in files:
    with open(path, "w") as file:
        file.write(token)
tcp = socket.create_server(("127.0.0.1", int(os.environ["NEIGHBOUR_PORT"])))
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\0" + os.environ["NEIGHBOUR_ABSTRACT"])
named = socket.socket(socket.AF_UNIX)
named.bind("/forge/scratch/socket")
listeners = (tcp, abstract, named)
for one in listeners:
    one.listen()
    one.setblocking(False)
beat, pause_s = 0, float(os.environ["NEIGHBOUR_PAUSE_S"])
while not os.path.exists("/forge/inputs/folder/stop"):
    for path in files:
        with open(path) as file:
            if file.read() != token:
                sys.exit(f"{path} was changed")
    for one in listeners:
        with contextlib.suppress(BlockingIOError):
            one.accept()
            sys.exit("somebody connected")
    if len([name for name in os.listdir("/proc") if name.isdigit()]) != 3:
        sys.exit("there is another process")
    beat += 1
    print(beat, flush=True)
    time.sleep(pause_s)
print("in peace")
