"""An execution is replayed from its record, and what differs is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from forge_orchestration_tests.conftest import PATIENCE, RUNTIME, Forge

pytestmark = pytest.mark.together

SAME = """\
import json, os, random
from pathlib import Path
outputs, n = Path(os.environ["FORGE_OUTPUTS"]), json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())["n"]
text = Path(os.environ["FORGE_INPUTS"], "text").read_text().split()
order = list(set(text))                       # another one each time, unless its seed is fixed
random.seed(int(os.environ["FORGE_SEED"]))
rows = [f"{word},{random.random() * n}" for word in order]
(outputs / "table.csv").write_text("word,score\\n" + "\\n".join(rows) + "\\n")
(outputs / "raw.bin").write_bytes(bytes(range(n)))
"""
DEFINITION = """\
runtime: forge-python
command: [python, run.py]
inputs: {text: {path: text.txt}}
outputs: {table: table.csv, raw: raw.bin}
params: {n: {type: int, default: 7}}
"""


@pytest.fixture
def analysis(tmp_path: Path) -> Path:
    folder = tmp_path / "analyses" / "words"
    folder.mkdir(parents=True)
    (folder / "run.py").write_text(SAME)
    (folder / "text.txt").write_text(" ".join(f"word{number}" for number in range(50)))
    (folder / "analysis.yaml").write_text(f"{DEFINITION}deterministic: true\n")
    return folder


def test_one_that_is_deterministic_is_identical(other_forge: Forge, analysis: Path) -> None:
    first = other_forge.record("run", analysis, "--param", "n=9", "--seed", "4")
    # what has become of the analysis since does not matter
    shutil.rmtree(analysis)
    done = other_forge("replay", first.execution_id)
    assert done.returncode == 0 and done.stdout.startswith(f"identical: 2 outputs of {first.execution_id} ["), done
    second = other_forge.read_record(done.stdout.rsplit("[", 1)[1].rstrip("]\n"))
    assert second.previous_execution_id == first.execution_id and not second.cache.hit and second.fingerprint == first.fingerprint
    assert second.parameters == {"n": 9} and second.seed == 4


def test_one_that_is_not_is_told_where(other_forge: Forge, analysis: Path) -> None:
    (analysis / "analysis.yaml").write_text(DEFINITION)
    other_forge.record("run", analysis)
    done = other_forge("replay", "last")
    assert done.returncode == 1 and "different: 1 of 2 outputs of " in done.stdout
    assert "  table.csv differs first in row 2, column 'word': word" in done.stdout


def test_one_byte(other_forge: Forge, analysis: Path) -> None:
    """Planted: a script that writes one byte of chance."""
    script = SAME.replace("bytes(range(n))", "bytes([*range(n - 1), os.urandom(1)[0] | 128])")
    (analysis / "run.py").write_text(script)
    first = other_forge.record("run", analysis)
    found = None
    for _ in range(4):  # it may be the same byte by chance, one time in 128
        done = other_forge("replay", first.execution_id, "--json")
        found = json.loads(done.stdout)
        if done.returncode == 1:
            break
    assert found is not None and found["verdict"] == "different"
    assert found["differences"] == [{"path": "raw.bin", "what": "differs first at byte 6"}]


def test_of_a_result_that_was_taken_the_one_that_ran_is_meant(other_forge: Forge, analysis: Path) -> None:
    first, second = other_forge.record("run", analysis), other_forge.record("run", analysis)
    assert second.cache.hit
    assert f"2 outputs of {first.execution_id}" in other_forge("replay", second.execution_id).stdout


def test_what_is_no_longer_the_same_is_refused_or_listed(other_forge: Forge, analysis: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere.txt"
    other.write_text("a b c")
    first = other_forge.record("run", analysis, "--input", f"text={other}")
    other.write_text("a b d")
    before = other_forge.executions()
    done = other_forge("replay", first.execution_id)
    assert done.returncode == 2 and other_forge.executions() == before
    assert "cannot be replayed, because this is no longer the same: input/text from " in done.stderr and "--force" in done.stderr
    forced = other_forge("replay", "--force", first.execution_id)
    assert forced.returncode == 1
    assert "no longer the same: input/text from " in forced.stdout and "table.csv differs first in row " in forced.stdout


def test_a_runtime_that_is_gone_is_built_from_its_lock(other_forge: Forge, analysis: Path) -> None:
    first = other_forge.record("run", analysis)
    shutil.rmtree(other_forge.home / "runtimes" / RUNTIME)
    done = other_forge("replay", first.execution_id, timeout=200 * PATIENCE)
    assert done.returncode == 0 and "identical: 2 outputs" in done.stdout, done


def test_what_cannot_be_replayed_is_a_sentence(other_forge: Forge, analysis: Path) -> None:
    (analysis / "run.py").write_text("raise SystemExit(3)")
    failed = other_forge.record("run", analysis)
    done = other_forge("replay", failed.execution_id)
    assert (
        done.returncode == 2
        and f"did not succeed, so there is nothing to compare with. Go on with it: forge resume {failed.execution_id}"
        in done.stderr
    )
    done = other_forge("replay", "nonsense")
    assert done.returncode == 2 and "is no execution id" in done.stderr


def test_of_a_bare_command(other_forge: Forge, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("x")
    first = other_forge.record(
        "exec", "--input", f"t={text}", "--output", "c", "--", "sh", "-c", "cat $FORGE_INPUTS/t > $FORGE_OUTPUTS/c"
    )
    assert other_forge("replay", first.execution_id).returncode == 0
    text.write_text("y")
    assert "input/t from" in other_forge("replay", first.execution_id).stderr
