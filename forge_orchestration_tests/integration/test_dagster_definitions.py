"""From analysis folders to assets, jobs and config, without running anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest
from dagster._config import process_config

from forge_orchestration.errors import SpecError
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.spec import AnalysisDefinition, Param
from forge_orchestration.orchestration.op_config import config_schema, describe_param, spec_arguments
from forge_orchestration.settings import load_settings
from forge_orchestration_tests.integration.dagster_support import Deployment

pytestmark = pytest.mark.together

DEFINITION = """
    description: Counts things
    group: it's a group
    outputs: {table: table.csv}
    params:
      resolution: {type: float, default: 1, min: 0.1, max: 5, description: How fine}
      mode: {type: str, default: fast, choices: [fast, slow]}
      copy: {type: int, default: 3}
      schema: {type: bool, default: true}
    limits: {memory: 300MiB}
"""


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    monkeypatch.setenv("FORGE_HOME", str(made.home))
    yield made


def definitions(deployment: Deployment) -> dg.Definitions:
    from forge_orchestration.orchestration.definitions import build_definitions

    return build_definitions(load_settings(deployment.home))


def config_of(defs: dg.Definitions, job: str, config: dict[str, Any]) -> Any:
    """What Dagster makes of a launch's config before the run starts."""
    schema = defs.resolve_job_def(job).run_config_schema.run_config_schema_type  # the schema that a launch is checked with
    return process_config(schema, {"ops": {f"run_{job}": {"config": config}}})


def test_an_analysis_is_an_asset_and_a_job_of_its_name(deployment: Deployment) -> None:
    deployment.add_analysis("counts", definition=DEFINITION)
    defs = definitions(deployment)
    spec = next(spec for spec in defs.resolve_all_asset_specs() if spec.key == dg.AssetKey(["counts"]))
    assert spec.group_name == "it_s_a_group"
    assert spec.description is not None
    for text in ("Counts things", "table.csv", "resolution = 1", "From 0.1 to 5", "300MiB"):
        assert text in spec.description
    assert defs.resolve_job_def("counts").asset_layer.selected_asset_keys == {dg.AssetKey(["counts"])}


def test_how_many_run_at_once_can_be_said_for_each_executor(deployment: Deployment) -> None:
    """Each op is in the pool of the executor that its definition or a rule names, and has a tag for limits within a run."""
    for name, more in (("here", ""), ("boxed", "executor: docker\n"), ("wide", "limits: {memory: 600MiB}\n")):
        deployment.add_analysis(name, definition=more)
    stages = "stages:\n  small: {command: [x], outputs: {a: a}}\n  large: {command: [x], limits: {memory: 600MiB}}\n"
    deployment.add_analysis("staged", definition=stages, command="")
    with open(deployment.home / "settings.toml", "a") as settings:
        settings.write('[[executor_rules]]\nexecutor = "slurm"\nmemory_over = "512MiB"\n[defaults]\nmemory = "512MiB"\n')
    defs = definitions(deployment)
    found = {name: defs.resolve_job_def(name).nodes[0].definition for name in ("here", "boxed", "wide")}
    staged = {one.name: one.definition for one in defs.resolve_job_def("staged").nodes}
    found |= {name: staged[f"run_staged__{name}"] for name in ("small", "large")}
    pools = {name: (one.pool, one.tags["forge/executor"]) for name, one in found.items() if isinstance(one, dg.OpDefinition)}
    assert pools == {"here": ("forge_local", "local"), "boxed": ("forge_docker", "docker"), "wide": ("forge_slurm", "slurm"),
                     "small": ("forge_local", "local"), "large": ("forge_slurm", "slurm")}  # fmt: skip


def test_config_has_every_default_and_a_description_for_each_key(deployment: Deployment) -> None:
    deployment.add_analysis("counts", definition=DEFINITION)
    job = definitions(deployment).resolve_job_def("counts")
    field = job.get_node_named("run_counts").definition.config_schema.as_field()
    assert field.default_value == {
        "runtime": "forge-python",
        "executor": "local",
        "threads": 1,
        "seed": 0,
        "priority": 0,
        "cache": "off",
        "params": {"resolution": 1, "mode": "fast", "copy": 3, "schema": True},
        "limits": {
            "memory": "300MiB", "cpus": 1.0, "pids": 100, "wall_time": "30min", "grace": "5s", "scratch": "2GiB", "log": "64MiB",
            "files": 131_072, "open_files": 4096,
        },
    }  # fmt: skip
    fields = field.config_type.fields
    assert {"forge-python", "forge-singlecell"} <= set(fields["runtime"].config_type.config_values)
    undescribed = [key for key, value in {**fields, **fields["limits"].config_type.fields}.items() if not value.description]
    assert undescribed == []
    assert fields["params"].config_type.fields["resolution"].description == "How fine. From 0.1 to 5."
    assert "At most" in fields["limits"].config_type.fields["memory"].description


@pytest.mark.parametrize(
    "config",
    [
        {"runtime": "forge-nothing"},
        {"runtime": None},
        {"executor": "cloud"},
        {"threads": "many"},
        {"seed": 1.5},
        {"seed": {"env": "SEED"}},
        {"priority": "high"},
        {"cache": "never"},
        {"unknown": 1},
        {"limits": {"memory": 5}},
        {"limits": {"memory": {"env": "SECRET"}}},
        {"limits": {"mem": "1GiB"}},
        {"params": {"mode": "medium"}},
        {"params": {"resolution": "fine"}},
        {"params": {"schema": "yes"}},
    ],
    ids=str,
)
def test_wrong_config_is_refused_before_a_run_starts(deployment: Deployment, config: dict[str, Any]) -> None:
    deployment.add_analysis("counts", definition=DEFINITION)
    defs = definitions(deployment)
    assert config_of(defs, "counts", {}).success
    assert not config_of(defs, "counts", config).success


def test_a_parameter_without_default_must_be_given(deployment: Deployment) -> None:
    deployment.add_analysis("counts", definition="params: {n: {type: int}}\n")
    defs = definitions(deployment)
    assert not config_of(defs, "counts", {}).success
    assert config_of(defs, "counts", {"params": {"n": 3}}).success


def test_config_says_only_what_was_chosen() -> None:
    definition = AnalysisDefinition(name="x", folder="/x", command=("true",), params={"a": Param(type="int", default=1)})
    config = {
        "runtime": "forge-python",
        "executor": "local",
        "threads": 1,
        "seed": 0,
        "priority": 3,
        "cache": "refresh",
        "params": {"a": 1},
        "limits": {"memory": "1GiB"},
    }
    same = spec_arguments(config, definition)
    assert "runtime" not in same
    assert (same["priority"], same["cache"]) == (3, "refresh")
    assert same["limits"] == {"memory": "1GiB"}
    assert spec_arguments({**config, "runtime": "forge-singlecell"}, definition)["runtime"] == "forge-singlecell"


def test_an_analysis_may_ask_for_one_build_of_a_runtime() -> None:
    """The launchpad offers it there, and to no other analysis."""
    one = AnalysisDefinition(name="one", folder="/x", command=("true",), runtime="forge-python@abc123")
    other = AnalysisDefinition(name="other", folder="/x", command=("true",))

    def job(definition: AnalysisDefinition) -> dg.JobDefinition:
        schema = config_schema(definition, Limits(), Limits(), ["forge-python"], ["local"])
        op = dg.op(name=definition.name, config_schema=schema)(lambda context: None)
        return dg.GraphDefinition(name=f"{definition.name}_job", node_defs=[op]).to_job()

    jobs = [job(one), job(other)]
    dg.Definitions.validate_loadable(dg.Definitions(jobs=jobs))
    dg.validate_run_config(jobs[0], {"ops": {"one": {"config": {"runtime": "forge-python@abc123"}}}})
    with pytest.raises(dg.DagsterInvalidConfigError):
        dg.validate_run_config(jobs[1], {"ops": {"other": {"config": {"runtime": "forge-python@abc123"}}}})
    missing = msgspec.structs.replace(one, runtime="nosuch@abc")
    with pytest.raises(SpecError, match="no runtime 'nosuch@abc'"):
        config_schema(missing, Limits(), Limits(), ["forge-python"], ["local"])


@pytest.mark.parametrize(
    ("param", "text"),
    [
        (Param(type="int"), ""),
        (Param(type="int", description="How many."), "How many."),
        (Param(type="int", min=1, description="How many"), "How many. At least 1."),
        (Param(type="str", choices=["a", "b"], default="a"), "One of a, b."),
    ],
)
def test_a_parameters_description_names_its_bounds(param: Param, text: str) -> None:
    assert describe_param(param) == text


BROKEN = {
    "no_yaml": "comand: [python",
    "unknown_key": "runtime: forge-python\ncommand: [python]\ncolour: red\n",
    "unknown_runtime": "runtime: forge-nothing\ncommand: [python]\n",
    "unknown_executor": "executor: cloud\ncommand: [python]\n",
    "too_much": "command: [python]\nlimits: {memory: 9000TiB}\n",
    "class": "command: [python]\n",
    "run_good": "command: [python]\n",
    "repair_runtime": "command: [python]\n",
    "verify_in_full": "command: [python]\n",
    "bad name's\nhere": "command: [python]\n",
    "__ASSET_JOB": "command: [python]\n",
    "hen": "command: [python]\ninputs: {x: {path: 'asset://egg'}}\n",
    "egg": "command: [python]\ninputs: {x: {path: 'asset://hen/chick'}, y: {path: 'asset://good/table'}}\n",
    "itself": "command: [python]\ninputs: {x: {path: 'asset://itself'}}\n",
}


def test_broken_analyses_are_told_and_the_others_load(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    deployment.add_analysis("good", definition=DEFINITION)
    deployment.add_analysis("twice", definition="params: {a: {type: str, default: x, choices: [x, x]}}\n")
    for name, text in BROKEN.items():
        deployment.add_analysis(name, definition=text, command="")
    defs = definitions(deployment)
    repository = defs.get_repository_def()
    repository.load_all_definitions()
    assert defs.resolve_job_def("good").description is not None
    assert defs.resolve_job_def("twice").description is not None
    broken = [spec for spec in defs.resolve_all_asset_specs() if spec.group_name == "broken"]
    assert len(broken) == len(BROKEN)
    assert all("cannot be used" in (spec.description or "") for spec in broken)
    assert len([entry for entry in caplog.records if "cannot be used" in entry.message]) == len(BROKEN)
    for name in ("no_yaml", "unknown_runtime", "too_much"):
        done = defs.resolve_job_def(name).execute_in_process(raise_on_error=False)
        failure = next(event for event in done.all_events if event.is_step_failure).step_failure_data
        assert failure.user_failure_data is not None
        assert failure.user_failure_data.description
        assert not any(event.event_type_value == "STEP_UP_FOR_RETRY" for event in done.all_events)
