"""Offers services to the host: on every address, on privileged ports, under known names. None may be seen outside."""

import os
import socket
import time

from evidence import TARGETS, attempt, done, say


def listen(family, address):
    one = socket.socket(family)
    one.bind(address)
    one.listen()
    return one


kept = [
    attempt("tcp", listen, socket.AF_INET, ("0.0.0.0", TARGETS["free_port"])),
    attempt("tcp of v6", listen, socket.AF_INET6, ("::", TARGETS["free_port"] + 1, 0, 0)),
    attempt("abstract", listen, socket.AF_UNIX, "\0forge-harm"),
    attempt("named", listen, socket.AF_UNIX, "/tmp/harm.sock"),
    attempt("in outputs", listen, socket.AF_UNIX, "/forge/outputs/harm.sock"),
    attempt("beside an input", listen, socket.AF_UNIX, "/forge/inputs/folder/harm.sock"),
    attempt("privileged", listen, socket.AF_INET, ("0.0.0.0", 80)),
]
say(listening=True)
while not os.path.exists("/forge/inputs/folder/looked"):
    time.sleep(0.01)
done()
