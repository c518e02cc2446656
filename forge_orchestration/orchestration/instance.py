"""Where Dagster keeps its own things: under `FORGE_HOME`, whichever way a Dagster command is started.

`dagster.yaml` can name a folder only literally or through an environment variable that must be set. Forge's home may be
neither, so `dagster.yaml` names this class instead, and the folder comes from Forge's settings. It changes defaults and
nothing else: whatever `dagster.yaml` configures itself still wins.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import dagster as dg
import sqlalchemy
from dagster._core.events import JobFailureData
from dagster._core.instance.ref import InstanceRef
from dagster._serdes import ConfigurableClassData

from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.messages import printable
from forge_orchestration.operations.workers import WorkerFolder
from forge_orchestration.orchestration import sqlite_storage
from forge_orchestration.settings import load_settings, make_home

LOG_POLL_S = 0.3
"""Between two looks of the web server at a step's captured logs. Dagster's own 2.5 s make a live log feel broken."""
EXIT_WITHOUT_STORAGE = 74
"""Exit status of a worker that could not store an event: EX_IOERR."""
_WHY_CHARS = 500


class ForgeInstance(dg.DagsterInstance):
    """A Dagster instance whose storage, event log, schedules, logs and artifacts lie in `Settings.dagster_dir`."""

    @classmethod
    def config_schema(cls) -> Mapping[str, object]:
        """No keys of its own in `dagster.yaml`; Dagster asks every instance class."""
        return {}

    def run_will_resume(self, run_id: str) -> bool:
        """Whether another worker will go on with a run whose worker ends now: never with one that is somebody's own command.

        Dagster asks this of `dagster job execute` too, and would take an interrupted one for running for ever.
        """
        try:
            worker = WorkerFolder(load_settings().workers_dir, run_id).worker()
        except ForgeError:  # it cannot be told: the run is then failed, rather than left to nobody
            return False
        return worker is not None and worker.keeper is not None and super().run_will_resume(run_id)

    ends_with_its_storage = False
    """Whether this process ends at once if an event cannot be stored. A run's worker does, and another goes on in its place."""

    def handle_new_event(self, event: dg.EventLogEntry, **batch: Any) -> None:
        """Store an event.

        Raises:
            Exception: The storage's. Within a step it would fail the step, whatever its execution has computed: so a worker ends.
        """
        try:
            super().handle_new_event(event, **batch)
        except Exception as error:
            if self.ends_with_its_storage and event.is_dagster_event and (why := _storage_failure(error)):
                print(f"This worker ends: an event could not be stored: {why}", file=sys.stderr, flush=True)
                os._exit(EXIT_WITHOUT_STORAGE)
            raise

    def report_run_failed(
        self, dagster_run: dg.DagsterRun, message: str | None = None, job_failure_data: JobFailureData | None = None
    ) -> dg.DagsterEvent:
        """Note that a run has failed, and of what: Dagster says no more than that it has, where an error is just being handled."""
        if message is None and (error := sys.exception()) is not None:
            told = printable(" ".join(str(error).split()))[:_WHY_CHARS] or type(error).__name__
            message = f"The run failed outside of its steps: {told.rstrip('.')}."
            if isinstance(error, dg.DagsterInvalidConfigError):
                message += " What it was launched with is not valid any more: launch it with other values."
        return super().report_run_failed(dagster_run, message, job_failure_data)

    @staticmethod
    def config_defaults(base_dir: str) -> Mapping[str, ConfigurableClassData | None]:
        """Dagster's own defaults, with Forge's folder in the place of `base_dir` (`DAGSTER_HOME` or a temporary one).

        The folder is made here, closed to other users: Dagster would make it, and `FORGE_HOME` above it, open to them.

        Raises:
            SpecError: The settings cannot be read, or the folder cannot be made.
        """
        del base_dir
        settings = load_settings()
        make_home(settings)
        settings.dagster_dir.mkdir(mode=0o700, exist_ok=True)
        defaults = dict(InstanceRef.config_defaults(str(settings.dagster_dir)))
        logs = defaults["compute_logs"]
        assert logs is not None
        config = json.dumps({**logs.config_dict, "polling_timeout": LOG_POLL_S})  # JSON is YAML
        storage = defaults["storage"]
        assert storage is not None
        return {
            **defaults,
            "compute_logs": logs._replace(config_yaml=config),
            "storage": storage._replace(module_name=sqlite_storage.__name__, class_name=sqlite_storage.OpenSqliteStorage.__name__),
        }


def _storage_failure(error: BaseException | None) -> str:
    """What the database's driver says; empty if it is not at fault. dagster-postgres hides it behind an exception of its own."""
    while error is not None:
        if isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
            return " ".join(str(error.orig).split())
        error = error.__cause__
    return ""
