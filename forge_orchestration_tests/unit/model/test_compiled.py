"""Types that threads read are compiled when they are defined: two threads that compile one at once crash the process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import forge_orchestration

PACKAGE = Path(forge_orchestration.__file__).parent
# processes with one thread
SINGLE_THREADED = {"sandbox/child.py", "sandbox/entry.py", "sandbox/spawner.py"}
READ = re.compile(r"msgspec\.json\.decode\(.*type=(?:list\[)?(\w+)|msgspec\.convert\(.*, (?:list\[)?([A-Z]\w+)")
FIRST_USE = """
import sys
from forge_orchestration.model.record import ExecutionRecord, record_from_json
text, called = ExecutionRecord(execution_id="x", analysis="a").to_json(), []
sys.setprofile(lambda frame, event, argument: called.append(frame.f_code.co_name))
record_from_json(text)
sys.setprofile(None)
assert "record_from_json" in called and "get_class_annotations" not in called, called
"""


def test_every_type_that_threads_read_is() -> None:
    sources = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
    read = {a or b for name, text in sources.items() if name not in SINGLE_THREADED for a, b in READ.findall(text)} - {"dict"}
    compiled = set(re.findall(r"@compiled\nclass (\w+)", "\n".join(sources.values())))
    assert "ExecutionRecord" in read
    assert read <= compiled


def test_the_first_use_compiles_nothing() -> None:
    subprocess.run([sys.executable, "-c", FIRST_USE], check=True, timeout=60)
