"""What a loss of power is to leave behind. Run inside the VM: `before` it goes, and `after` the next boot.

python -m forge_orchestration_tests.vm.power before|after
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from forge_orchestration_tests.conftest import Forge, leftovers

HOME = Path.home() / "forge of a machine that loses power"
NOTES = HOME / "notes.json"
LIMITS = ("--memory", "128MiB", "--scratch", "32MiB")
RUNNING = 3


def before() -> None:
    """Finish one execution, have three others running, and write down what was promised of them."""
    HOME.mkdir(mode=0o700)
    forge = Forge(HOME)
    done = forge("runtimes", "build", "forge-python")
    assert done.returncode == 0, done.stderr
    words = (*forge.command, "exec", *LIMITS, "--", "sh", "-c", "echo begun > $FORGE_OUTPUTS/part; echo up; exec sleep 3600")
    running = []
    for _ in range(RUNNING):
        process = subprocess.Popen(words, env=forge.environment(), stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        running.append(process)
    ids = [folder.name for folder in (HOME / "executions").iterdir()]
    begun = [one for one in ids if forge.read_record(one).status == "running"]
    assert len(begun) == RUNNING, begun
    script = 'for i in 1 2 3 4 5 6 7 8 9; do head -c 300000 /dev/urandom > "$FORGE_OUTPUTS/result $i"; done'
    record = forge.record("exec", *LIMITS, "--", "sh", "-c", script)
    assert record.succeeded and len(record.outputs) == 9, record
    # told to be done: from here on it must be there
    notes = {"finished": record.to_json(), "running": begun, "boot": Path("/proc/sys/kernel/random/boot_id").read_text()}
    with open(NOTES, "w") as file:
        json.dump(notes, file)
        file.flush()
        os.fsync(file.fileno())
    print("ready to lose power")


def after() -> None:
    """Look at what is there, let Forge put it right, and look again."""
    notes, forge = json.loads(NOTES.read_text()), Forge(HOME)
    assert notes["boot"] != Path("/proc/sys/kernel/random/boot_id").read_text(), "the machine was not off"
    deadline = time.monotonic() + 120
    while any(not forge.read_record(one).status.is_final for one in notes["running"]):
        # the next start puts it right by itself, or the one after that: none waits longer than two seconds for it
        done = forge("exec", *LIMITS, "--", "true")
        assert done.returncode == 0 and time.monotonic() < deadline, done.stderr
    for one in notes["running"]:
        record = forge.read_record(one)
        assert (record.status, record.end_reason) == ("lost", "controller_lost"), record
    reported = json.loads(forge("gc", "--json").stdout)
    assert reported["problems"] == [], reported
    finished = json.loads(notes["finished"])
    record = forge.read_record(finished["execution_id"])
    assert json.loads(record.to_json()) == finished, record
    for output in record.outputs:
        content = Path(record.folder, "outputs", output.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (output.bytes, output.sha256), output
    listed = {row["execution_id"]: row["status"] for row in json.loads(forge("executions", "list", "--json").stdout)}
    assert all(listed.get(one) == "lost" for one in notes["running"]) and listed.get(record.execution_id) == "succeeded", listed
    while (left := leftovers(HOME)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == [], left
    assert forge("runtimes", "show", "forge-python").returncode == 0
    print("nothing was lost, and nothing is left")


if __name__ == "__main__":
    faulthandler.dump_traceback_later(600, exit=True)  # should it hang, it is to say where
    {"before": before, "after": after}[sys.argv[1]]()
