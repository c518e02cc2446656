"""Connects to what a neighbouring execution listens on, in a network of its own."""

import os
import socket

from evidence import TARGETS, attempt, connect, done

attempt("tcp", connect, socket.AF_INET, ("127.0.0.1", TARGETS["neighbour_port"]))
attempt("tcp of v6", connect, socket.AF_INET6, ("::1", TARGETS["neighbour_port"], 0, 0))
attempt("abstract", connect, socket.AF_UNIX, "\0" + TARGETS["neighbour_abstract"])
attempt(
    "folder of its socket", os.chdir, TARGETS["neighbour_scratch"] + "/scratch"
)  # its name alone would be too long to connect to
done()
