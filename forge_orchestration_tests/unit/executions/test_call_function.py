"""What calls a function in a sandbox, run as it is there, without the sandbox: by this Python, which has Dagster, without seeing it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from forge_orchestration.executions import call_function

HEAD = """
    import dagster as dg
    from forge_orchestration import forge_asset
    from pathlib import Path
"""


class Sandbox:
    """Folders as an execution has them."""

    def __init__(self, path: Path) -> None:
        self.inputs, self.outputs, self.analysis = (path / name for name in ("inputs", "outputs", "analysis"))
        for folder in (self.inputs, self.outputs, self.analysis):
            folder.mkdir()
        self.params = path / "params.json"

    def call(self, body: str, **params: object) -> subprocess.CompletedProcess[str]:
        """Write a module and call its function `f`."""
        (self.analysis / "module.py").write_text(textwrap.dedent(HEAD) + textwrap.dedent(body))
        self.params.write_text(json.dumps(params))
        environment = {
            "PATH": os.environ["PATH"], "FORGE_ANALYSIS": str(self.analysis), "FORGE_INPUTS": str(self.inputs),
            "FORGE_OUTPUTS": str(self.outputs), "FORGE_PARAMS": str(self.params),
        }  # fmt: skip
        # isolated, and without what is installed here: there is no Dagster, as in most runtimes
        command = [sys.executable, "-I", "-S", str(call_function.__file__), "module", "f"]
        return subprocess.run(command, env=environment, cwd=self.outputs.parent, capture_output=True, text=True)

    def result(self) -> object:
        (file,) = self.outputs.iterdir()
        return json.loads(file.read_text()) if file.suffix == ".json" else file.read_bytes()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_a_module_full_of_dagster_is_loaded(sandbox: Sandbox) -> None:
    done = sandbox.call(
        """
        class Settings(dg.Config):
            number: int = 3

        class Server(dg.ConfigurableResource):
            url: str

        condition = dg.AutomationCondition.eager() & ~dg.AutomationCondition.missing() | dg.AutomationCondition.newly_updated()
        selection = dg.AssetSelection.all() - dg.AssetSelection.groups("x")
        many = [1, *dg.load_assets_from_modules([])] + dg.load_assets_from_current_module()

        @dg.asset(deps=["x"])
        def plain(context: dg.AssetExecutionContext) -> dg.MaterializeResult: ...

        @forge_asset(runtime="x")
        def f(*, by: int) -> int:
            return by + Settings.number

        with dg.DagsterInstance.ephemeral() as instance:
            server = Server(url="x")
        defs = dg.Definitions(assets=[plain, f], resources={"server": server, "url": server.url})
        """,
        by=4,
    )
    assert done.returncode == 0, done.stderr
    assert sandbox.result() == 7


def test_a_failure_of_dagsters_says_what_it_says(sandbox: Sandbox) -> None:
    done = sandbox.call("def f():\n    raise dg.Failure('no reads at all')\n")
    assert done.returncode == 1
    assert "no reads at all" in done.stderr


def test_dagster_pipes_is_not_made_up(sandbox: Sandbox) -> None:
    done = sandbox.call("def f():\n    import dagster_pipes\n")
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'dagster_pipes'" in done.stderr


@pytest.mark.parametrize("begins", ["PAR1", "\\x89HDF", "\\x93NUMPY", "x"])
def test_bytes_are_bytes_whatever_they_begin_with(sandbox: Sandbox, begins: str) -> None:
    assert sandbox.call(f"def f(): return b'{begins} and more'\n").returncode == 0
    (made,) = sandbox.outputs.iterdir()
    made.rename(sandbox.inputs / "value.bin")
    done = sandbox.call("def f(value): return [type(value).__name__, len(value)]\n")
    assert done.returncode == 0, done.stderr
    assert sandbox.result() == ["bytes", len(f"{begins} and more".encode().decode("unicode_escape"))]


@pytest.mark.parametrize(
    ("name", "annotation", "kind"),
    [("x.json", "", "dict"), ("x.json", ": Path", "PosixPath"), ("x.txt", "", "PosixPath"), ("x.txt", ": 'bytes'", "bytes"), ("x", "", "PosixPath")],
)  # fmt: skip
def test_a_file_is_given_by_what_it_is_and_what_is_wanted(sandbox: Sandbox, name: str, annotation: str, kind: str) -> None:
    (sandbox.inputs / name).write_text('{"a": 1}')
    assert sandbox.call(f"def f(x{annotation}): return type(x).__name__\n").returncode == 0
    assert sandbox.result() == kind


def test_a_path_may_be_the_results_own(sandbox: Sandbox) -> None:
    body = f"def f():\n    path = Path({str(sandbox.outputs)!r}, 'result.csv')\n    path.write_text('a,b')\n    return path\n"
    done = sandbox.call(body)
    assert done.returncode == 0, done.stderr
    assert sandbox.result() == b"a,b"


def test_the_name_of_the_result_is_its_own(sandbox: Sandbox) -> None:
    body = f"def f():\n    Path({str(sandbox.outputs)!r}, 'result.log').write_text('x')\n    return 1\n"
    done = sandbox.call(body)
    assert done.returncode == 1
    assert "there are result.json, result.log, and the name is the result's alone" in done.stderr


@pytest.mark.parametrize("value", ["object()", "float('nan')", "{1: {2, 3}}", "print"])
def test_what_no_file_can_hold(sandbox: Sandbox, value: str) -> None:
    done = sandbox.call(f"def f(): return {value}\n")
    assert done.returncode == 1
    assert done.stderr.startswith("The result of f, a ")
    assert "Traceback" not in done.stderr


def test_a_function_that_is_none(sandbox: Sandbox) -> None:
    assert "f of module is no function here" in sandbox.call("f = 3\n").stderr
    assert "f of module is no function here" in sandbox.call("f = dg.asset\n").stderr
