"""Gives its outputs names that lie to a terminal, a shell, a spreadsheet, a table or a path."""

import os

from evidence import TARGETS, attempt, done


def make(name):
    fd = os.open(b"/forge/outputs/" + name, os.O_CREAT | os.O_WRONLY)
    os.write(fd, name)
    os.close(fd)


for text in TARGETS["names"]:
    name = text.encode("utf-8", "surrogateescape") if not text.startswith("hex:") else bytes.fromhex(text[4:])
    attempt(text.encode("utf-8", "backslashreplace").decode(), make, name)
done()
