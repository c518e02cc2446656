"""The job that repairs a runtime: it builds the lock anew beside what is there, and says at once that all is well again."""

from collections.abc import Mapping, Sequence

import dagster as dg

from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.operations.inspection import inspect
from forge_orchestration.operations.repair import repair
from forge_orchestration.orchestration.health_verdict import QUICK, evaluation, materialization
from forge_orchestration.orchestration.step import failure_of
from forge_orchestration.orchestration.trust import TRUSTED
from forge_orchestration.settings import Settings

JOB = "repair_runtime"
_OP = "_rebuild"  # no analysis' name begins like this


def repair_definitions(settings: Settings, runtimes: Sequence[str], keys: Mapping[str, dg.AssetKey]) -> dg.Definitions:
    """The job `repair_runtime`."""
    names = dg.Enum("ForgeRuntime", [dg.EnumValue(name) for name in runtimes])

    @dg.op(name=_OP, tags=TRUSTED, config_schema={"runtime": dg.Field(names, description="What is built anew from its lock.")})
    def rebuild(context: dg.OpExecutionContext) -> None:
        name = context.op_config["runtime"]
        engine = Engine(settings)
        try:
            made = repair(engine, name, context.log.info)
        except ForgeError as error:
            raise failure_of(error) from None
        inspection = inspect(engine, name, full=False)
        context.log_event(materialization(keys[name], QUICK, inspection, made.content_digest))
        context.log_event(evaluation(keys[name], QUICK, inspection))  # type: ignore[arg-type]  # it is taken

    @dg.job(
        name=JOB,
        description="Builds a runtime anew from its lock, beside the one that is there, tests it, and puts it in its place.",
    )
    def repair_runtime() -> None:
        rebuild()

    return dg.Definitions(jobs=[repair_runtime])


def repair_request(name: str, what: str) -> dg.RunRequest:
    """A run that repairs a runtime; `what` names the build and when it became unhealthy, and is asked for once."""
    return dg.RunRequest(
        run_key=f"repair {name}: {what}",
        job_name=JOB,
        run_config={"ops": {_OP: {"config": {"runtime": name}}}},
        tags={"forge/runtime": name},
    )
