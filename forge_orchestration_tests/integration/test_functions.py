"""`@forge_asset` and `@forge_op`: functions of a user's module, run by Dagster in sandboxes of runtimes that have no Dagster."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from forge_orchestration.errors import SpecError
from forge_orchestration.executions.upstream import collected
from forge_orchestration.orchestration.functions import function_definition
from forge_orchestration_tests.integration import forge_functions
from forge_orchestration_tests.integration.dagster_support import REPOSITORY, RUN_S, Deployment

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("functions"))
    made.build_runtime()
    shutil.copy(str(forge_functions.__file__), made.home.parent / "lab assets.py")
    package = made.home.parent / "lab"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts" / "__init__.py").write_text("")
    (package / "numbers.py").write_text("BASE = 40\n")
    text = """
        import dagster as dg
        from forge_orchestration import forge_asset
        from forge_orchestration.orchestration.sandboxed_executor import sandboxed_executor
        from ..numbers import BASE

        @forge_asset
        def answer() -> int:
            return BASE + 2

        defs = dg.Definitions(assets=[answer], jobs=[dg.define_asset_job("ask", selection=["answer"])], executor=sandboxed_executor)
        """
    (package / "parts" / "assets.py").write_text(textwrap.dedent(text))
    yield made


def execute(deployment: Deployment, job: str, config: dict[str, Any] | None = None, of: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit status and standard error of `dagster job execute`."""
    parent = deployment.home.parent
    command = [
        sys.executable,
        "-m",
        "dagster",
        "job",
        "execute",
        *(of or ("-f", str(parent / "lab assets.py"), "-a", "defs")),
        "-j",
        job,
    ]
    if config is not None:
        (parent / "config.yaml").write_text(json.dumps(config))
        command += ["-c", str(parent / "config.yaml")]
    environment = deployment.environment
    environment["PYTHONPATH"] += f":{parent}"
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False)
    return done.returncode, done.stderr


def latest(deployment: Deployment, analysis: str) -> dict[str, Any]:
    return [record for record in deployment.records() if record["analysis"] == analysis][-1]


def result(record: dict[str, Any]) -> Any:
    (output,) = record["outputs"]
    assert output["name"] == "result"
    text = Path(record["folder"], "outputs", output["path"]).read_text()
    return json.loads(text) if output["path"].endswith(".json") else text


def test_assets_pass_files_to_each_other(deployment: Deployment) -> None:
    status, said = execute(deployment, "texts", {"ops": {"run_words": {"config": {"params": {"count": 3, "style": "loud"}}}}})
    assert status == 0, said
    words, joined, written, seen = (latest(deployment, name) for name in ("words", "joined", "written", "seen"))
    assert result(words) == ["AAA", "BBB", "CCC"]
    assert words["parameters"] == {"count": 3, "style": "loud"}
    assert result(joined) == "AAA-BBB-CCC"
    assert (joined["limits"]["memory_bytes"], joined["seed"]) == (128 * 2**20, 7)
    (came,) = joined["inputs"]
    assert came["name"] == "words.json"
    assert came["source"] == f"execution://{words['execution_id']}/result.json"
    assert came["sha256"] == words["outputs"][0]["sha256"]
    assert [output["path"] for output in written["outputs"]] == ["result.txt"]
    facts = result(seen)
    assert facts["text"] == "AAA-BBB-CCC"
    assert facts["dagster"] == "_AbsentModule", "the runtime has no Dagster"
    assert {name for name in facts["environment"] if name.startswith("DAGSTER")} == {
        "DAGSTER_PIPES_CONTEXT",
        "DAGSTER_PIPES_MESSAGES",
    }
    assert latest(deployment, "checked")["checks"] == [
        {"name": "few", "passed": True, "severity": "error", "message": "", "values": {"words": 3}}
    ]
    assert "Asset check 'few' on 'checked' passed" in said
    assert "words are made of" in Path(words["folder"], "stdout.log").read_text()
    kept = sorted(path.name for path in Path(words["folder"], "analysis").iterdir())
    assert kept == ["forge_call.py", "lab assets.py"], "of the folder, the module alone is taken along"


def test_an_asset_alone_reads_what_was_made_before(deployment: Deployment) -> None:
    if not [record for record in deployment.records() if record["analysis"] == "words"]:
        assert execute(deployment, "texts")[0] == 0
    words = latest(deployment, "words")
    status, said = execute(deployment, "only_joined", {"ops": {"run_joined": {"config": {"params": {"by": "+"}}}}})
    assert status == 0, said
    joined = latest(deployment, "joined")
    assert joined["inputs"][0]["source"] == f"execution://{words['execution_id']}/result.json"
    file = Path(words["folder"], "outputs", "result.json")
    file.chmod(0o600)
    file.write_text('["forged"]')
    status, said = execute(deployment, "only_joined")
    assert status == 1
    assert "is no longer what was collected" in said


def test_ops_of_a_graph(deployment: Deployment) -> None:
    status, said = execute(deployment, "arithmetic")
    assert status == 0, said
    assert result(latest(deployment, "added")) == 60
    status, said = execute(
        deployment, "arithmetic", {"ops": {"number": {"config": {"params": {"value": 1}, "limits": {"memory": "64MiB"}}}}}
    )
    assert status == 0, said
    assert result(latest(deployment, "added")) == 3
    assert latest(deployment, "number")["enforced"]["memory_bytes"]["value"] == 64 * 2**20


def test_a_package_comes_whole(deployment: Deployment) -> None:
    status, said = execute(deployment, "ask", of=("-m", "lab.parts.assets"))
    assert status == 0, said
    record = latest(deployment, "answer")
    assert result(record) == 42
    assert record["command"][-2:] == ["lab.parts.assets", "answer"]


def test_what_a_function_raises_is_what_is_said(deployment: Deployment) -> None:
    assert execute(deployment, "only_failing")[0] == 1
    record = latest(deployment, "failing")
    assert record["end_reason"] == "nonzero_exit"
    trace = Path(record["folder"], "stderr.log").read_text()
    assert "ValueError: this is the reason" in trace
    assert "forge_call.py" not in trace, "of what calls the function nothing is to be seen"
    assert execute(deployment, "only_unstorable")[0] == 1
    said = Path(latest(deployment, "unstorable")["folder"], "stderr.log").read_text()
    assert said.startswith("The result of unstorable, a object, cannot be stored: ")
    assert "Return a data frame" in said


def test_the_page_of_an_asset_says_what_it_is() -> None:
    asset = forge_functions.joined
    (text,) = asset.descriptions_by_key.values()
    assert text.startswith("All words as one.")
    for part in ("`asset://words` list[str]", "Returns `str`", "by = -"):
        assert part in text, text
    assert [key.to_user_string() for spec in asset.specs for key in (dep.asset_key for dep in spec.deps)] == ["words"]


def _positional_default(words: list[str], by: str = "-") -> None: ...


def _untyped(*, by: Any = 1) -> None: ...


def _wrong_default(*, by: int = "many") -> None: ...  # type: ignore[assignment]


def _context(context: Any, words: list[str]) -> None: ...


def _choice(table: not_known.here, *, by: Literal["a", "b"] = "a") -> None: ...  # type: ignore[name-defined]  # noqa: F821


def test_one_annotation_that_is_not_known_here_hides_no_other() -> None:
    definition = function_definition(_choice, name="x")
    assert definition.params["by"].choices == ["a", "b"]
    assert definition.inputs["table"].description == "not_known.here"


def _everything(*words: str) -> None: ...


async def _later() -> None: ...


def _numbers(*, by: Literal[1, 2] = 1) -> None: ...


WRONG: list[tuple[Callable[[], Any], str]] = [
    (partial(function_definition, _positional_default), "'by' of the function _positional_default"),
    (partial(function_definition, _everything), "'words' of the function _everything"),
    (partial(function_definition, _untyped), "is of type Any"),
    (partial(function_definition, _context), "wants a context"),
    (partial(function_definition, _numbers), "is of type"),
    (partial(function_definition, _wrong_default, name="wrong"), "must be of type int"),
    (partial(function_definition, _later), "not known what"),
    (partial(function_definition, lambda: 1), "cannot find the function"),
    (partial(function_definition, staticmethod(forge_functions.helper)), "is no function"),
    (partial(function_definition, print), "is no function"),
    (partial(function_definition, forge_functions.helper, name="1st"), "cannot be an analysis' name"),
    (partial(function_definition, forge_functions.helper, limits={"memory": "much"}), "much"),
    (partial(function_definition, forge_functions.helper, env={"FORGE_SEED": "1"}), "is Forge's own"),
    (partial(function_definition, forge_functions.helper, ins={"no": "such"}), "no parameter 'no'"),
    (partial(function_definition, forge_functions.helper, checks=["few"]), "checks of the function helper"),
    (partial(function_definition, forge_functions.helper, checks={"few": None}), "checks of the function helper"),
    (partial(function_definition, forge_functions.helper, memory="1GiB"), "no option 'memory'"),
    (partial(forge_functions.forge_op, forge_functions.helper, checks={"few": ""}), "no option 'checks'"),
]  # fmt: skip


def test_the_page_of_an_op_names_no_assets() -> None:
    op = forge_functions.doubled
    assert (op.description or "").startswith("Twice as much.")
    assert "asset://" not in (op.description or "")
    assert op.input_dict["number"].description == "int"


@pytest.mark.parametrize("wrong,said", WRONG, ids=[said for _, said in WRONG])
def test_what_cannot_be_run_is_refused_when_it_is_declared(wrong: Callable[[], Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        wrong()


def test_an_id_that_leads_elsewhere_is_none(tmp_path: Path) -> None:
    for source in ("execution://../x", "execution:///etc/passwd", "execution://x/y", "execution://"):
        with pytest.raises(SpecError, match="is not there"):
            collected(source, tmp_path)
