"""`analysis.yaml`: everything that can be wrong in one is a sentence that names the file and the key."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from forge_orchestration.analyses import (
    analysis_folders,
    checked_param,
    load_definition,
    load_definitions,
    read_definition,
    spec_from_definition,
)  # fmt: skip
from forge_orchestration.api import command_spec
from forge_orchestration.errors import RuntimeCatalogError, SpecError
from forge_orchestration.model.sections import ExecutorRule, RuntimeRule
from forge_orchestration.model.spec import AnalysisDefinition, Param
from forge_orchestration.settings import Settings

FULL = """
description: Counts things
group: test
runtime: forge-python
command: [python, run.py, --fast]
inputs: {reads: {path: data/reads.fq, description: Reads}, abs: {path: /data/x}, pkg: {path: "package://a/b"}, home: {path: ~/x}}
outputs: {table: "*.csv"}
params:
  n: {type: int, default: 3, min: 1, max: 10}
  x: {type: float, default: 1}
  name: {type: str, choices: [a, b], default: a}
  flag: {type: bool, default: false}
  needed: {type: str}
limits: {memory: 256MiB, pids: 20}
env: {OMP_STACKSIZE: "1M"}
threads: 2
seed: 7
priority: -3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "ana'lyses" / "counts"
    made.mkdir(parents=True)
    (made / "run.py").touch()
    return made


def write(folder: Path, text: str) -> Path:
    (folder / "analysis.yaml").write_text(text)
    return folder


def test_everything_that_can_be_written(folder: Path) -> None:
    definition = read_definition(write(folder, FULL))
    assert (definition.name, definition.folder, definition.group) == ("counts", str(folder), "test")
    assert definition.command == ("python", "run.py", "--fast")
    assert definition.params["n"] == Param(type="int", default=3, min=1, max=10)
    assert (definition.threads, definition.seed, definition.limits) == (2, 7, {"memory": "256MiB", "pids": 20})
    assert definition.priority == -3


def test_a_command_is_all_that_is_needed(folder: Path) -> None:
    definition = read_definition(write(folder, "command: [sh, -c, 'true']"))
    assert (definition.runtime, definition.executor, definition.outputs) == ("forge-python", "local", {})


def test_a_rule_of_the_settings_picks_the_runtime_where_the_analysis_names_none(folder: Path, settings: Settings) -> None:
    rules = (
        RuntimeRule(runtime="first", group="other"),
        RuntimeRule(runtime="second", tag="wide"),
        RuntimeRule(runtime="third", group="test"),
    )
    settings = msgspec.structs.replace(settings, runtime_rules=rules)
    tagged = load_definition(str(write(folder, "command: [x]\ntags: [deep, wide]")), settings)
    assert (tagged.runtime, tagged.runtime_chosen_by) == ("second", "rule: tag wide")
    grouped = load_definition(str(write(folder, "command: [x]\ngroup: test")), settings)
    assert (grouped.runtime, grouped.runtime_chosen_by) == ("third", "rule: group test")
    named = load_definition(str(write(folder, FULL)), settings)
    assert (named.runtime, named.runtime_chosen_by) == (read_definition(folder).runtime, "analysis")
    neither = load_definition(str(write(folder, "command: [x]")), settings)
    assert (neither.runtime, neither.runtime_chosen_by) == ("forge-python", "default")


def test_a_rule_of_the_settings_picks_the_executor_where_nobody_else_does(folder: Path, settings: Settings) -> None:
    rules = (
        ExecutorRule(executor="first", tag="wide", memory_over="1GiB"),
        ExecutorRule(executor="second", group="test"),
        ExecutorRule(executor="third", memory_over="16GiB"),
    )
    settings = msgspec.structs.replace(
        settings, executor_rules=rules, maximum=msgspec.structs.replace(settings.maximum, memory_bytes=64 << 30)
    )

    def chosen(text: str, **asked: Any) -> tuple[str, str]:
        definition = load_definition(str(write(folder, f"command: [x]\n{text}")), settings)
        spec = spec_from_definition(definition, settings, **asked)
        if not asked:  # what the launchpad shows is what happens
            assert (definition.executor, definition.executor_chosen_by) == (spec.executor, spec.chosen_by["executor"])
        return spec.executor, spec.chosen_by["executor"]

    assert chosen("tags: [wide]\nlimits: {memory: 2GiB}") == ("first", "rule: tag wide and more than 1GiB of memory")
    assert chosen("tags: [wide]\nlimits: {memory: 1GiB}") == ("local", "default")
    assert chosen("group: test") == ("second", "rule: group test")
    assert chosen("limits: {memory: 17GiB}") == ("third", "rule: more than 16GiB of memory")
    assert chosen("limits: {memory: 16GiB}") == ("local", "default")
    assert chosen("limits: {memory: 1GiB}", limits={"memory": "20GiB"}) == ("third", "rule: more than 16GiB of memory")
    assert chosen("limits: {memory: 17GiB}", limits={"memory": "1GiB"}) == ("local", "default")
    assert chosen("limits: {memory: 17GiB}\nexecutor: local") == ("local", "analysis")
    assert chosen("group: test", executor="local") == ("local", "op config")
    spec = command_spec(("x",), settings, limits={"memory": "20GiB"})
    assert (spec.executor, spec.chosen_by["executor"]) == ("third", "rule: more than 16GiB of memory")


def test_those_that_ship(settings: Settings) -> None:
    assert set(load_definitions(settings)) == {
        "colon_survival",
        "confinement",
        "islands_and_exons",
        "pbmc_clusters",
        "pbmc_from_counts",
        "tumour_kinds",
        "tumour_search",
        "yeast_expression",
    }


WRONG = {
    "an unknown key": ("command: [x]\ncolour: red", "colour"),
    "an unknown key of a parameter": ("command: [x]\nparams: {a: {type: int, colour: red}}", "colour"),
    "an unknown key of an input": ("command: [x]\ninputs: {a: {path: /x, mode: rw}}", "mode"),
    "no command": ("description: x", "command"),
    "an empty command": ("command: []", "command"),
    "an empty word": ("command: [python, '']", "command"),
    "a command that is text": ("command: python run.py", "command"),
    "a command with a number": ("command: [python, 5]", "command"),
    "a command with a list": ("command: [python, [x]]", "command"),
    "nothing": ("", "analysis.yaml"),
    "a list": ("- command", "analysis.yaml"),
    "text": ("hello", "analysis.yaml"),
    "no YAML": ("command: [python", "analysis.yaml"),
    "a tab": ("command:\n\t- x", "analysis.yaml"),
    "a Python object": ("command: !!python/object/apply:os.system [echo hacked]", "analysis.yaml"),
    "two documents": ("command: [x]\n---\ncommand: [y]", "analysis.yaml"),
    "control characters": ("command: ['\x07']", "analysis.yaml"),
    "a description that is a list": ("command: [x]\ndescription: [a]", "description"),
    "inputs that are a list": ("command: [x]\ninputs: [a]", "inputs"),
    "an input that is text": ("command: [x]\ninputs: {a: /data}", "inputs"),
    "an input without a path": ("command: [x]\ninputs: {a: {}}", "path"),
    "outputs that are a list": ("command: [x]\noutputs: [a.csv]", "outputs"),
    "an absolute output": ("command: [x]\noutputs: {a: /etc/passwd}", "output 'a'"),
    "an output that leads out": ("command: [x]\noutputs: {a: ../../x}", "output 'a'"),
    "an output that leads out later": ("command: [x]\noutputs: {a: b/../../x}", "output 'a'"),
    "an empty output": ("command: [x]\noutputs: {a: ''}", "output 'a'"),
    "a parameter without a type": ("command: [x]\nparams: {a: {default: 1}}", "type"),
    "a parameter of an unknown type": ("command: [x]\nparams: {a: {type: integer}}", "'a'.*integer"),
    "a default of the wrong type": ("command: [x]\nparams: {a: {type: int, default: x}}", "'a'"),
    "a default that is a float": ("command: [x]\nparams: {a: {type: int, default: 1.5}}", "'a'"),
    "a default that is true": ("command: [x]\nparams: {a: {type: int, default: true}}", "'a'"),
    "a default that is a list": ("command: [x]\nparams: {a: {type: str, default: [x]}}", "default"),
    "a default below its bound": ("command: [x]\nparams: {a: {type: int, default: 0, min: 1}}", "'a'"),
    "a default above its bound": ("command: [x]\nparams: {a: {type: float, default: 5.5, max: 5}}", "'a'"),
    "a default that is NaN": ("command: [x]\nparams: {a: {type: float, default: .nan}}", "'a'"),
    "a default that is no choice": ("command: [x]\nparams: {a: {type: str, default: c, choices: [a, b]}}", "'a'"),
    "a bound that is text": ("command: [x]\nparams: {a: {type: int, min: low}}", "min"),
    "an unknown limit": ("command: [x]\nlimits: {ram: 1GiB}", "ram"),
    "a malformed limit": ("command: [x]\nlimits: {memory: lots}", "memory"),
    "a negative limit": ("command: [x]\nlimits: {pids: -1}", "pids"),
    "limits that are a list": ("command: [x]\nlimits: [1GiB]", "limits"),
    "limits that are enormous": (f"command: [x]\nlimits: {{memory: {'9' * 400}}}", "memory"),
    "a variable of Forge's own": ("command: [x]\nenv: {FORGE_SEED: '5'}", "FORGE_SEED"),
    "a variable with a space": ("command: [x]\nenv: {'A B': x}", "A B"),
    "a variable with =": ("command: [x]\nenv: {'A=B': x}", "A=B"),
    "a variable without a name": ("command: [x]\nenv: {'': x}", "environment"),
    "a variable that is a number": ("command: [x]\nenv: {A: 5}", "env"),
    "a variable with a NUL byte": ('command: [x]\nenv: {A: "a\\0b"}', "'A'"),
    "a command with a NUL byte": ('command: [x, "a\\0b"]', "command"),
    "a program with =": ("command: ['A=b', x]", "A=b"),
    "threads that are text": ("command: [x]\nthreads: many", "threads"),
    "no threads": ("command: [x]\nthreads: 0", "threads"),
    "threads that are a fraction": ("command: [x]\nthreads: 1.5", "threads"),
    "a negative seed": ("command: [x]\nseed: -1", "seed"),
    "an enormous seed": (f"command: [x]\nseed: {2**64}", "seed"),
    "a priority that is text": ("command: [x]\npriority: high", "priority"),
    "an enormous priority": ("command: [x]\npriority: 1001", "priority"),
    "a runtime that is a list": ("command: [x]\nruntime: [a]", "runtime"),
    "an input with an impossible name": ("command: [x]\ninputs: {'a/b': {path: /x}}", "a/b"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence_that_names_file_and_key(folder: Path, case: str, settings: Settings) -> None:
    text, words = WRONG[case]
    with pytest.raises(SpecError, match=f"(?s){words}") as caught:
        read_definition(write(folder, text))
    assert str(folder) in str(caught.value) or words in ("seed", "threads", "priority")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


def test_an_alias_bomb_neither_hangs_nor_fills_the_memory(folder: Path) -> None:
    """The billion laughs: it would be 10^9 words if anybody wrote it out."""
    levels = ["a0: &a0 [lol, lol]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(SpecError):
        read_definition(write(folder, "\n".join([*levels, "command: [x]"])))


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "analysis.yaml").write_bytes(b"command: ['\xff']")
    with pytest.raises(SpecError, match=r"analysis\.yaml is wrong"):
        read_definition(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no analysis\.yaml"):
        read_definition(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(SpecError):
        read_definition(tmp_path / "file")


@pytest.mark.parametrize("name", ["1st", "a-b", "a b", "ö", "-rf", "a.b", "x" * 101])
def test_names_that_an_asset_cannot_have(folder: Path, name: str) -> None:
    other = folder.with_name(name)
    shutil.copytree(write(folder, "command: [x]"), other)
    with pytest.raises(SpecError, match="cannot be an analysis' name"):
        read_definition(other)


class TestFinding:
    @pytest.fixture
    def own(self, settings: Settings, folder: Path) -> Settings:
        write(folder, "command: [x]")
        return msgspec.structs.replace(settings, analysis_folders=(folder.parent,))

    def test_by_name_and_by_path(self, own: Settings, folder: Path) -> None:
        assert load_definition("counts", own) == load_definition(str(folder), own)

    @pytest.mark.parametrize("name", ["nosuch", "", "...", "confinement ", "x" * 5000])
    def test_an_unknown_one_is_named_with_those_that_exist(self, own: Settings, name: str) -> None:
        with pytest.raises(SpecError, match="no analysis") as caught:
            load_definition(name, own)
        assert "counts" in str(caught.value) and len(str(caught.value)) < 400

    def test_two_with_one_name(self, own: Settings, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "more" / "counts")
        both = msgspec.structs.replace(own, analysis_folders=(folder.parent, tmp_path / "more"))
        with pytest.raises(SpecError, match="Two analyses are called 'counts'"):
            analysis_folders(both)

    def test_a_configured_folder_that_is_not_there(self, own: Settings, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="nothing cannot be read"):
            analysis_folders(msgspec.structs.replace(own, analysis_folders=(tmp_path / "nothing",)))


PARAMS = {
    "int": Param(type="int", min=1, max=10),
    "float": Param(type="float", min=-1.5, max=1.5),
    "str": Param(type="str", choices=["a", "b"]),
    "any": Param(type="str"),
    "bool": Param(type="bool"),
}


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("int", 5, 5), ("int", "5", 5), ("int", " 5 ", 5), ("float", 1, 1.0), ("float", "1", 1.0), ("float", "-1.5", -1.5),
        ("float", "1e-3", 0.001), ("str", "a", "a"), ("any", "", ""), ("any", "5", "5"), ("any", "-x", "-x"),
        ("bool", True, True), ("bool", "true", True), ("bool", "False", False),
    ],
)  # fmt: skip
def test_a_parameter_that_fits(name: str, value: object, result: object) -> None:
    found = checked_param(name, PARAMS[name], value, "the test")
    assert found == result and type(found) is type(result)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("int", "x"), ("int", ""), ("int", "1.0"), ("int", 1.0), ("int", True), ("int", None), ("int", [1]), ("int", 0), ("int", 11),
        ("int", "0"), ("int", "9" * 5000), ("float", "x"), ("float", "nan"), ("float", float("nan")), ("float", "inf"),
        ("float", "-inf"), ("float", 2), ("float", False), ("str", "c"), ("str", 5), ("str", None), ("any", 5), ("any", b"x"),
        ("bool", "yes"), ("bool", 1), ("bool", "1"), ("bool", None), ("float", 10**400),
    ],
    ids=lambda value: ascii(value)[:12],
)  # fmt: skip
def test_a_parameter_that_does_not_fit_is_named(name: str, value: object) -> None:
    with pytest.raises(SpecError, match=f"Parameter '{name}' in the test"):
        checked_param(name, PARAMS[name], value, "the test")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), "inf", "1e999"])
def test_a_float_without_bounds_is_still_a_number(value: object) -> None:
    """`params.json` has no way to say anything else."""
    with pytest.raises(SpecError):
        checked_param("x", Param(type="float"), value, "the test")


class TestSpec:
    @pytest.fixture
    def definition(self, folder: Path) -> AnalysisDefinition:
        return read_definition(write(folder, FULL))

    def spec(self, definition: AnalysisDefinition, settings: Settings, **changes):
        return spec_from_definition(definition, settings, **{"params": {"needed": "x"}, **changes})

    def test_as_it_is_defined(self, definition: AnalysisDefinition, settings: Settings, folder: Path) -> None:
        spec = self.spec(definition, settings)
        assert spec.command == ("python", "/forge/analysis/run.py", "--fast")
        assert spec.params == {"n": 3, "x": 1.0, "name": "a", "flag": False, "needed": "x"}
        assert spec.inputs == {"reads": f"{folder}/data/reads.fq", "abs": "/data/x", "pkg": "package://a/b", "home": "~/x"}
        assert (spec.limits.memory_bytes, spec.limits.pids, spec.limits.cpus) == (256 * 2**20, 20, 1.0)
        assert (spec.threads, spec.seed, spec.priority, spec.env) == (2, 7, -3, {"OMP_STACKSIZE": "1M"})
        assert spec.chosen_by == {"runtime": "analysis", "executor": "default"}

    def test_as_it_is_asked_for(self, definition: AnalysisDefinition, settings: Settings) -> None:
        spec = self.spec(
            definition, settings, runtime="forge-python", params={"needed": "y", "n": "5"}, limits={"pids": 30}, threads=4, seed=0,
            inputs={"reads": "mine.fq"}, asked_by="command line",
        )  # fmt: skip
        assert (spec.params["n"], spec.limits.pids, spec.limits.memory_bytes) == (5, 30, 256 * 2**20)
        assert (spec.threads, spec.seed, spec.inputs["reads"]) == (4, 0, "mine.fq")
        assert spec.chosen_by == {"runtime": "command line", "executor": "default"}

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"params": {}}, "'needed'.*no default"), ({"params": {"needed": "x", "colour": 1}}, "no parameter 'colour'"),
            ({"params": {"needed": "x", "n": 99}}, "'n'"), ({"params": {"needed": 5}}, "'needed'"),
            ({"inputs": {"writes": "/x"}}, "no input 'writes'"), ({"limits": {"ram": 1}}, "ram"),
            ({"limits": {"memory": "-1"}}, "memory"), ({"limits": {"pids": 10**6}}, "'pids'.*allows"),
            ({"limits": {"cpus": 100000}}, "'cpus'.*allows"), ({"threads": 0}, "threads"), ({"seed": -1}, "seed"), ({"seed": 2**63}, "seed"), ({"priority": -1001}, "priority"),
        ],
        ids=lambda value: str(value)[:40],
    )  # fmt: skip
    def test_what_cannot_be_asked_for(self, definition: AnalysisDefinition, settings: Settings, changes: dict, words: str) -> None:
        with pytest.raises(SpecError, match=words):
            self.spec(definition, settings, **changes)

    def test_an_unknown_runtime(self, definition: AnalysisDefinition, settings: Settings) -> None:
        with pytest.raises(RuntimeCatalogError, match="nosuch"):
            self.spec(definition, settings, runtime="nosuch")

    def test_deployment_runtime_analysis_execution_in_this_order(
        self, definition: AnalysisDefinition, settings: Settings, tmp_path: Path
    ) -> None:
        runtime = tmp_path / "runtimes" / "own"
        runtime.mkdir(parents=True)
        (runtime / "runtime.toml").write_text(
            'kind = "venv"\nlock = "l"\n[limits]\nmemory = "3GiB"\nwall_time = "1min"\ncpus = 0.5\n'
        )
        (runtime / "l").touch()
        layered = msgspec.structs.replace(
            settings, runtime_folders=(tmp_path / "runtimes",), defaults=msgspec.structs.replace(settings.defaults, grace_s=9.0)
        )
        limits = self.spec(definition, layered, runtime="own", limits={"cpus": 0.75}).limits
        assert (limits.grace_s, limits.wall_time_s, limits.memory_bytes, limits.cpus) == (9.0, 60.0, 256 * 2**20, 0.75)

    def test_a_word_that_leads_out_of_the_folder_is_no_file_of_it(self, definition: AnalysisDefinition, settings: Settings) -> None:
        outside = Path(definition.folder).parent / "outside.py"
        outside.touch()
        moved = msgspec.structs.replace(definition, command=("python", "../outside.py", "./run.py", os.path.abspath(outside)))
        assert self.spec(moved, settings).command[2] == "/forge/analysis/run.py"
        assert self.spec(moved, settings).command[1] == "../outside.py"
        assert self.spec(moved, settings).command[3] == str(outside)
