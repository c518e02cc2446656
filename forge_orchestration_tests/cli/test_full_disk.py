"""A full disk: `FORGE_HOME` on a small file system of its own, mounted where only this test's processes see it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from forge_orchestration_tests.cli.conftest import SMALL
from forge_orchestration_tests.conftest import Forge, prerequisite

# mounts, copies what is needed, fills all but $3 KiB, runs forge, and says what is left
SCRIPT = """
set -eu
mount -t tmpfs -o size=32m,mode=0700 none "$1"
mkdir -p "$1/executions" "$1/scratch/templates"
cp -a "$2/runtimes" "$1/"
cp -a --sparse=always "$2/scratch/templates/"4194304-*.img "$1/scratch/templates/"
if [ "$3" -ge 0 ]; then
  dd if=/dev/zero of="$1/ballast" bs=64k 2>/dev/null || true
  dd if=/dev/zero bs=1k 2>/dev/null >>"$1/ballast" || true
  truncate -s "-${3}K" "$1/ballast"
fi
shift 3
status=0
FORGE_HOME="$HOME_OF_TEST" timeout 60 "$@" || status=$?
echo "status $status"
for folder in executions scratch; do
  for name in $(ls "$HOME_OF_TEST/$folder"); do
    echo "$folder/$name: $(grep -o '"status": "[a-z]*"' "$HOME_OF_TEST/$folder/$name/record.json" 2>/dev/null || true)"
  done
done
"""


@pytest.fixture
def on_a_disk(forge: Forge, tmp_path: Path):
    prerequisite(os.geteuid() == 0, "mounting needs root")
    prerequisite(shutil.which("unshare"), "unshare is not installed")
    home = tmp_path / "small home"
    home.mkdir()
    assert forge.record("exec", *SMALL, "--", "true").succeeded  # so that there is a template of this size

    def run(free_kib: int, *arguments: str) -> tuple[int, str, str, list[str]]:
        """Exit status, stdout, stderr, and what is left in `executions` and `scratch`."""
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh", home, forge.home, str(free_kib),
             *forge.command, *arguments],
            env={**os.environ, "HOME_OF_TEST": str(home)}, capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert "status " in done.stdout, done.stderr
        out, _, rest = done.stdout.rpartition("status ")
        status, *left = rest.splitlines()
        return (
            int(status),
            out,
            done.stderr,
            [line for line in left if not line.startswith(("scratch/templates", "scratch/workspace"))],
        )

    return run


def test_a_disk_with_room_is_fine(on_a_disk) -> None:
    """Or the tests below would prove nothing."""
    status, out, _, left = on_a_disk(-1, "exec", *SMALL, "--", "echo", "fine")
    assert (status, out) == (0, "fine\n")
    assert len(left) == 1 and left[0].endswith('"status": "succeeded"')


def test_a_full_one_is_a_sentence_before_anything_starts(on_a_disk) -> None:
    status, out, error, left = on_a_disk(0, "exec", *SMALL, "--", "echo", "started")
    assert status == 7 and out == ""
    assert error.startswith("forge: ") and error.count("\n") == 1 and "disk" in error and "Traceback" not in error
    assert left == []


@pytest.mark.parametrize("free_kib", [4, 40, 64, 80, 84, 88, 92, 96, 104, 112, 120, 400])
def test_one_that_is_nearly_full_leaves_nothing_half_done(on_a_disk, free_kib: int) -> None:
    """Wherever it fills up on the way: a sentence that says so, and every execution that began has a final record."""
    status, _, error, left = on_a_disk(free_kib, "exec", *SMALL, "--", "echo", "started")
    if status == 0:
        assert error == ""
    else:
        assert status in (5, 6, 7), error
        assert error.startswith("forge: ") and error.count("\n") == 1 and ("disk" in error or "space" in error), error
    for line in left:
        assert line.startswith("executions/") and any(end in line for end in ("succeeded", "failed", "lost", "refused")), left


def test_logs_that_do_not_fit(on_a_disk) -> None:
    """The analysis prints more than the disk takes, though less than its limit allows: we failed, and say so; it is ended."""
    status, _, error, left = on_a_disk(12_000, "exec", *SMALL, "--", "sh", "-c", "head -c 20000000 /dev/zero; sleep 50")
    assert status == 5, error
    assert "No space left" in error and "Traceback" not in error
    assert len(left) == 1 and '"status": "failed"' in left[0], left
