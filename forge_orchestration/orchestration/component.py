"""`type: forge_orchestration.Analysis`: an analysis folder as a Dagster component, for projects that `dg` manages.

The folder is as it is everywhere: scripts and an `analysis.yaml`, or the same keys as `attributes` of its `defs.yaml`: a folder with
that file alone is an analysis too, and `forge run` takes it.
"""

import textwrap
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
from pydantic import ConfigDict, Field

from forge_orchestration.analyses import definition_from, read_definition, with_rules
from forge_orchestration.errors import SpecError
from forge_orchestration.executors.registry import executor_names
from forge_orchestration.model.sections import CachePolicy
from forge_orchestration.orchestration.analysis_assets import assets_of
from forge_orchestration.orchestration.launchable import Launchable, launchable
from forge_orchestration.runtimes.catalog import runtime_names
from forge_orchestration.settings import load_settings


class InputModel(dg.Model):
    """Where an input comes from."""

    path: str | None = Field(
        default=None, description="A path, package://NAME/PATH in the runtime, or asset://NAME/OUTPUT of another analysis."
    )
    url: str | None = Field(
        default=None, description="Instead of a path: where it is fetched, by http, https or s3; or file:///absolute/path."
    )
    sha256: str | None = Field(default=None, description="With a url: the digest that its content must have.")
    database: str | None = Field(
        default=None, description="Instead of a path: a database of the deployment's settings, as it is then."
    )
    query: str | None = Field(default=None, description="With a database: what is asked of it; the answer comes as Parquet.")
    description: str = ""


class ParamModel(dg.Model):
    """One parameter of a launch."""

    type: str = Field(description="int, float, str or bool.")
    default: bool | int | float | str | None = Field(default=None, description="Without one, each launch must say it.")
    min: float | None = None
    max: float | None = None
    choices: list[bool | int | float | str] | None = None
    description: str = ""


class PartitionsModel(dg.Model):
    """What the analysis is cut into: keys, windows of time, or a set of keys that Dagster keeps."""

    keys: list[str] | None = Field(default=None, description="Names that are known.")
    every: str | None = Field(default=None, description="hour, day, week or month.")
    start: str | None = Field(default=None, description="The day of the first window, such as 2026-01-01.")
    dynamic: str | None = Field(default=None, description="Name of the set.")
    per_run: int | None = Field(default=None, description="Most of them in one run of a backfill; all, if not given.")


class ColumnModel(dg.Model):
    """What stands in one column of a table."""

    type: str = Field(description="int, float, str, bool or time.")
    null: bool = Field(default=False, description="Whether there may be nothing.")
    min: float | None = None
    max: float | None = None
    choices: list[int | float | str] | None = None


class PublicationModel(dg.Model):
    """Where one output goes: into a table, or as a file."""

    output: str = Field(description="Name of the output.")
    table: str | None = Field(default=None, description="DATABASE.TABLE; the database is one of the deployment's settings.")
    path: str | None = Field(default=None, description="FOLDER/PATH; the folder is one of the deployment's settings.")
    columns: dict[str, ColumnModel] | None = Field(default=None, description="All columns of the table.")
    unique: list[str] | None = Field(default=None, description="Columns of which no two rows have the same values.")


class RetryModel(dg.Model):
    """Another attempt with a larger limit."""

    attempts: int = Field(default=1, description="At most, the first included.")
    factor: float = Field(default=2.0, description="What the limit is multiplied by.")


class AnalysisScaffolder(dg.Scaffolder):
    """Makes a folder with an analysis that runs."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        """Write `defs.yaml` and `run.py`."""
        attributes = {
            "description": "Says hello",
            "command": ["python", "run.py"],
            "outputs": {"greeting": "greeting.txt"},
            "params": {"name": {"type": "str", "default": "world"}},
            "limits": {"memory": "256MiB", "wall_time": "1min"},
        }
        dg.scaffold_component(request, attributes)
        script = """\
            import json
            import os
            from pathlib import Path

            name = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())["name"]
            print("greeting", name)
            Path(os.environ["FORGE_OUTPUTS"], "greeting.txt").write_text(f"Hello, {name}.\\n")
            """
        (request.target_path / "run.py").write_text(textwrap.dedent(script))


@dg.scaffold_with(AnalysisScaffolder)
class Analysis(dg.Component, dg.Model, dg.Resolvable):
    """An analysis that runs in a sandbox, in a named runtime, under limits.

    The folder's own files go into the sandbox. It is an asset called as the folder is, and a job of the same name.
    """

    model_config = ConfigDict(extra="forbid")

    command: list[str] | None = Field(default=None, description="Program and arguments; files are relative to this folder.")
    description: str | None = Field(default=None, description="Shown on the asset's page.")
    group: str | None = Field(default=None, description="Of the asset.")
    tags: list[str] | None = Field(default=None, description="By which the deployment's rules may choose a runtime.")
    runtime: str | None = Field(default=None, description="Software environment of the catalog: see `forge runtimes list`.")
    executor: str | None = Field(default=None, description="Where to run.")
    inputs: dict[str, InputModel] | None = Field(default=None, description="Files that it reads, by name.")
    outputs: dict[str, str] | None = Field(default=None, description="Files or patterns that it must write, by name.")
    checks: dict[str, str] | None = Field(default=None, description="What it must report on, by name, and what is expected.")
    publish: dict[str, PublicationModel] | None = Field(
        default=None, description="Outputs that go to a database or a folder, by name."
    )
    partitions: PartitionsModel | None = Field(default=None, description="What it is cut into, an execution each.")
    params: dict[str, ParamModel] | None = Field(default=None, description="What a launch may change.")
    limits: dict[str, bool | int | float | str] | None = Field(
        default=None, description="memory, cpus, pids, wall_time, grace, scratch, log, files, open_files: 2GiB, 1, 100, 30min …"
    )
    retry_with_more: RetryModel | None = Field(default=None, description="After an end for want of memory or of time.")
    schedule: str | None = Field(default=None, description="When it runs by itself, as cron writes times, in UTC.")
    env: dict[str, str] | None = Field(default=None, description="Environment variables.")
    threads: int | None = Field(default=None, description="Threads of numerical libraries.")
    seed: int | None = Field(default=None, description="Seed of random numbers.")
    priority: int | None = Field(default=None, description="Of executions that wait for room the highest is first.")

    deterministic: bool | None = Field(default=None, description="Whether each execution must make the same bytes.")
    cache: CachePolicy | None = Field(
        default=None, description="What is done with an earlier result that was made of the very same."
    )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The asset and its job.

        Raises:
            ForgeError: The definition cannot become a runnable asset; the sentence says why.
        """
        settings = load_settings()
        folder = Path(context.path)
        folder = folder if folder.is_dir() else folder.parent
        own: dict[str, Any] = self.model_dump(exclude_none=True)
        if own and (folder / "analysis.yaml").is_file():
            raise SpecError(f"{folder} has both an analysis.yaml and attributes in its defs.yaml.", "Remove one of them.")
        definition = definition_from(msgspec.to_builtins(own), folder, folder / "defs.yaml") if own else read_definition(folder)
        assets = assets_of(with_rules(definition, settings), settings, runtime_names(settings), executor_names())
        return launchable([Launchable(definition.name, assets, definition)])
