"""Changes its own files while it runs, so that what is kept would not be what was run."""

import os

from evidence import attempt, done, write

for name in ("attack.py", "evidence.py", "analysis.yaml"):
    path = f"/forge/analysis/{name}"
    attempt(f"write {name}", write, path)
    attempt(f"remove {name}", os.unlink, path)
    attempt(f"chmod {name}", os.chmod, path, 0o777)
attempt("new", write, "/forge/analysis/harm.py", b"harm", os.O_CREAT)
attempt("bytecode", os.mkdir, "/forge/analysis/__pycache__")
done()
