"""Leaves links among its outputs, which lead to the host's secrets for whoever follows them when collecting."""

import os

from evidence import TARGETS, done, say

os.chdir("/forge/outputs")
AIMS = {
    "secret": TARGETS["secret"],
    "readable": TARGETS["readable"],
    "up": "../" * 20 + TARGETS["readable"],
    "record": "../record.json",
    "shadow": "/etc/shadow",
    "environment": "/proc/self/environ",
    "itself": "itself",
    "nowhere": "/nonexistent",
    "store": TARGETS["home"] + "/store.db",
}
for name, aim in AIMS.items():
    os.symlink(aim, name)
os.symlink(os.path.dirname(TARGETS["secret"]), "folder")
os.symlink("/", "root")
os.mkdir("inner")
os.symlink("../../..", "inner/above")
say(made=len(AIMS) + 3)
done()
