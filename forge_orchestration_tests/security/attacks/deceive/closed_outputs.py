"""Closes its outputs, and the folder that holds them, so that whoever collects is refused."""

import os

from evidence import attempt, done

os.mkdir("/forge/outputs/folder")
for name in ("folder/inner", "file"):
    with open(f"/forge/outputs/{name}", "w") as file:
        file.write("x")
    attempt(f"close {name}", os.chmod, f"/forge/outputs/{name}", 0)
attempt("close the folder", os.chmod, "/forge/outputs/folder", 0)
attempt("close the outputs", os.chmod, "/forge/outputs", 0)
attempt("close the scratch", os.chmod, "/forge/scratch", 0)
done()
