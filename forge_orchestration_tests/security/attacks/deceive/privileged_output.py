"""Leaves a program that is set-uid, set-gid, executable and writable by all, for somebody to run."""

import os

from evidence import done, say

with open("/forge/outputs/tool", "wb") as file:
    file.write(b"#!/bin/sh\nid\n")
os.chmod("/forge/outputs/tool", 0o6777)
os.mkdir("/forge/outputs/folder")
with open("/forge/outputs/folder/inner", "wb") as file:
    file.write(b"x")
os.chmod("/forge/outputs/folder", 0o3777)
say(modes=[oct(os.stat(f"/forge/outputs/{name}").st_mode) for name in ("tool", "folder")])
done()
