"""Changes the runtime, which every later execution would load: packages, start-up hooks, compiled modules, the interpreter."""

import os
import sys
import sysconfig

from evidence import attempt, done, write

packages = sysconfig.get_paths()["purelib"]
for path in (
    f"{packages}/sitecustomize.py",
    f"{packages}/harm.pth",
    f"{os.path.dirname(os.__file__)}/__pycache__/harm.pyc",
    "/forge/runtime/bin/harm",
):
    attempt(f"new {path}", write, path, b"harm", os.O_CREAT)
for path in ("/forge/runtime/bin/python", "/forge/runtime/pyvenv.cfg", os.path.realpath(sys.executable), os.__file__):
    attempt(f"write {path}", write, path)
    attempt(f"remove {path}", os.unlink, path)
    attempt(f"chmod {path}", os.chmod, path, 0o777)
attempt("rename", os.rename, "/forge/runtime/bin", "/forge/runtime/nib")
done()
