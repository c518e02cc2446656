"""A Dagster deployment for tests: commands, and a web server on loopback, spoken to as the UI does."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from forge_orchestration.executors.recovery import TRIAL
from forge_orchestration_tests.conftest import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[2]
LOCATION = "forge_orchestration.definitions"
START_S = 120.0 * PATIENCE
RUN_S = 90.0 * PATIENCE
NO_QUEUE = {
    "run_queue:\n  max_concurrent_runs: 10\n  dequeue_interval_seconds: 1\n": "run_coordinator:\n"
    "  module: dagster.core.run_coordinator\n  class: DefaultRunCoordinator\n"
}
"""A change to `dagster.yaml` for a web server without a daemon."""
MONITOR_S = 2
LOOKED_AT_OFTEN = {"poll_interval_seconds: 10": f"poll_interval_seconds: {MONITOR_S}"}
"""A change to `dagster.yaml`: how often Dagster's monitor looks at the workers of runs."""
TELEMETRY = "telemetry:\n  enabled: false\n"
T = TypeVar("T")
FINAL = ("SUCCESS", "FAILURE", "CANCELED")


def in_postgres(url: str) -> dict[str, str]:
    """A change to `dagster.yaml`: all of Dagster's storage in the database of a `postgresql://` URL."""
    driver = url.replace("postgresql:", "postgresql+psycopg2:", 1)  # that which dagster-postgres brings
    return {TELEMETRY: f"{TELEMETRY}\nstorage:\n  postgres:\n    postgres_url: {driver}\n"}


class Deployment:
    """A `FORGE_HOME` with analyses of the test's own, and commands that see nothing of who runs the tests.

    Args:
        settings: Beneath what these tests need in `settings.toml`.
        changed: Lines of the repository's `dagster.yaml`, and what they are here; none: that file itself is used.
        reuse: Whether earlier results are taken; most tests are of what runs.
    """

    def __init__(self, folder: Path, settings: str = "", changed: Mapping[str, str] | None = None, *, reuse: bool = False) -> None:
        self._changed = dict(changed or {})
        self._launch_name = "launch"
        self.home = folder / "forge home"
        self.analyses = folder / "analyses"
        self.analyses.mkdir()
        self.home.mkdir(mode=0o700)
        self._temporary = folder / "tmp"  # Dagster's servers that are killed leave their sockets in it
        self._temporary.mkdir()
        policy = "use" if reuse else "off"
        (self.home / "settings.toml").write_text(
            f'analysis_folders = ["{self.analyses}"]\n{settings}\n[reuse]\npolicy = "{policy}"\n'
        )

    def changed(self, name: str, changed: Mapping[str, str]) -> Deployment:
        """The same home and analyses with another `dagster.yaml`, in a folder called `name`."""
        other = copy.copy(self)
        other._changed, other._launch_name = dict(changed), name
        return other

    def add_analysis(self, name: str, script: str = "", definition: str = "", command: str = "[python, run.py]") -> None:
        """A folder with an `analysis.yaml` in `forge-python` and a `run.py`; `command` empty for none."""
        folder = self.analyses / name
        folder.mkdir()
        (folder / "run.py").write_text(textwrap.dedent(script))
        head = f"runtime: forge-python\ncommand: {command}\n" if command else ""
        (folder / "analysis.yaml").write_text(head + textwrap.dedent(definition))

    @property
    def environment(self) -> dict[str, str]:
        """Of Dagster commands."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "FORGE_"))}
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {
            **kept,
            "FORGE_HOME": str(self.home),
            "TMPDIR": str(self._temporary),
            "PYTHONPATH": path,
            "PYTHONWARNINGS": "ignore",
        }

    def build_runtime(self) -> None:
        """Build `forge-python`, the one runtime that these tests need."""
        self.forge("runtimes", "build", "forge-python")

    def forge(self, *arguments: str, timeout_s: float = RUN_S) -> str:
        """What a `forge` command that must succeed prints."""
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from forge_orchestration.cli.main import main; sys.exit(main())", *arguments],
            env=self.environment, capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def job_command(self, job: str, *config: Path) -> list[str]:
        """`dagster job execute -m … -j job -c …`."""
        files = [word for path in config for word in ("-c", str(path))]
        return [sys.executable, "-m", "dagster", "job", "execute", "-m", LOCATION, "-j", job, *files]

    def job_execute(
        self, job: str, *config: Path, cwd: Path = REPOSITORY, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run that command to its end."""
        environment = {**self.environment, **(env or {})}
        return subprocess.run(
            self.job_command(job, *config), cwd=cwd, env=environment, capture_output=True, text=True, timeout=RUN_S
        )

    def records(self) -> list[dict[str, Any]]:
        """All records, oldest first; the trials that the health sensor makes are nobody's executions, and go again."""
        records = [json.loads(path.read_text()) for path in sorted(self.home.glob("executions/*/record.json"))]
        return [record for record in records if record["analysis"] != TRIAL]

    def record_of_run(self, run_id: str) -> dict[str, Any]:
        """The record of the one execution that a run made."""
        found = [record for record in self.records() if record["dagster_run_id"] == run_id]
        assert len(found) == 1, found
        return found[0]

    @contextmanager
    def webserver(self) -> Iterator[Webserver]:
        """A web server that loads the repository's own `workspace.yaml` and `dagster.yaml`."""
        with self._served("webserver", "dagster_webserver") as server:
            yield server

    @contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        """Dagster's daemon, which ticks sensors and watches runs; killed with all that it started."""
        command = [str(Path(sys.executable).with_name("dagster-daemon")), "run", "-w", "workspace.yaml"]
        folder = self.launch_folder()
        with (self.home.parent / "daemon.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=folder, env={**self.environment, "DAGSTER_HOME": str(folder)}, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            end_session(process.pid)
            process.wait(30)

    @contextmanager
    def dagster_dev(self) -> Iterator[Webserver]:
        """The same with Dagster's daemon, which ticks sensors and schedules: what `dagster dev` starts."""
        with self._served("dagster-dev", "dagster", "dev", DAGSTER_HOME=str(self.launch_folder())) as server:
            yield server

    def launch_folder(self) -> Path:
        """The checkout, whose `dagster.yaml` holds without DAGSTER_HOME; where it cannot be written, as Dagster wants, a folder with its files."""
        if os.access(REPOSITORY, os.W_OK) and not self._changed and PATIENCE == 1:
            return REPOSITORY
        folder = self.home.parent / self._launch_name
        folder.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / "workspace.yaml", folder)
        text = (REPOSITORY / "dagster.yaml").read_text()
        for line, other in self._changed.items():
            assert text.count(line) == 1, line
            text = text.replace(line, other)
        if PATIENCE > 1:  # Dagster gives a code server three minutes, which an emulated processor needs for its imports
            text += f"\ncode_servers:\n  local_startup_timeout: {180 * PATIENCE:.0f}\n"
        (folder / "dagster.yaml").write_text(text)
        return folder

    @contextmanager
    def _served(self, log_name: str, *words: str, **environment: str) -> Iterator[Webserver]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log_path = self.home.parent / f"{log_name}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *words, "-h", "127.0.0.1", "-p", str(port), "-w", "workspace.yaml"],
                cwd=self.launch_folder(), env={**self.environment, **environment}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            yield Webserver(f"http://127.0.0.1:{port}", process, log_path)
        finally:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            end_session(process.pid)


def end_session(session: int) -> None:
    """Kill whatever of a session is left, and wait until it is gone."""
    deadline = time.monotonic() + 20
    while (left := processes_of_session(session)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def processes_of_session(session: int) -> list[int]:
    """Processes that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def processes_with(word: str) -> list[int]:
    """Processes that have `word` as an argument."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if word.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def processes_in_cgroup(name: str) -> list[int]:
    """Processes in a cgroup that has `name` in its path, as the host sees it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if f"/{name}" in (entry / "cgroup").read_text():
                    found.append(int(entry.name))
    return found


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float = RUN_S, every_s: float = 0.1) -> T:
    """Look until there is something to see.

    Raises:
        AssertionError: There was nothing within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if found := look():
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(every_s)


class Webserver:
    """What the UI asks and says, over GraphQL."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.url = url
        self.process = process
        self._log_path = log_path
        wait_for("the web server", self._is_up, START_S)

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self._log_path.read_text()
        try:
            self.query("{ version }")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """The data of one query or mutation."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                result = json.load(answer)
        except urllib.error.HTTPError as error:  # Dagster answers so when its code server refuses
            result = json.load(error)
        assert not result.get("errors"), result["errors"]
        data: dict[str, Any] = result["data"]
        return data

    def launch(self, job: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a launch from the launchpad: `LaunchRunSuccess` with its run, or why not."""
        return self._launch({"selector": _selector(job)}, {f"run_{job}": {"config": config}} if config else {})

    def start_assets(self, *names: str) -> str:
        """Press Materialize with these assets selected; the id of the run."""
        selector = {**_selector("__ASSET_JOB"), "assetSelection": [{"path": [name]} for name in names]}
        answer = self._launch({"selector": selector}, {})
        assert answer["__typename"] == "LaunchRunSuccess", answer
        run_id: str = answer["run"]["runId"]
        return run_id

    def start_job(self, job: str, ops: dict[str, Any] | None = None, tags: Mapping[str, str] | None = None) -> str:
        """Launch a job with the config of its ops, which must be accepted; the id of the run."""
        answer = self._launch({"selector": _selector(job), "executionMetadata": {"tags": _tags(tags or {})}}, ops or {})
        assert answer["__typename"] == "LaunchRunSuccess", answer
        run_id: str = answer["run"]["runId"]
        return run_id

    def start_range(self, job: str, first: str, last: str) -> str:
        """Launch one run for all partitions from one to another; its id."""
        return self.start_tagged(job, {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last})

    def start_tagged(self, job: str, tags: Mapping[str, str]) -> str:
        """Launch a run with tags of one's own; its id."""
        return self.start_job(job, tags=tags)

    def _launch(self, target: dict[str, Any], ops: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self.query(
            """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
                 ... on LaunchRunSuccess { run { runId } }
                 ... on RunConfigValidationInvalid { errors { message reason } }
                 ... on InvalidSubsetError { message }
                 ... on PythonError { message } } }""",
            params={**target, "runConfigData": json.dumps({"ops": ops}), "mode": "default"},
        )["launchRun"]
        return answer

    def start(self, job: str, config: dict[str, Any] | None = None) -> str:
        """Launch a run that must be accepted; its id."""
        answer = self.launch(job, config)
        assert answer["__typename"] == "LaunchRunSuccess", answer
        run_id: str = answer["run"]["runId"]
        return run_id

    def execute_again(self, run_id: str, strategy: str = "ALL_STEPS") -> dict[str, Any]:
        """Press Re-execute, all or `FROM_FAILURE`, with the config that is stored with a run."""
        answer: dict[str, Any] = self.query(
            """mutation($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) { __typename
                 ... on LaunchRunSuccess { run { runId } }
                 ... on RunConfigValidationInvalid { errors { message } } ... on PythonError { message } } }""",
            params={"parentRunId": run_id, "strategy": strategy},
        )["launchRunReexecution"]
        return answer

    def default_config(self, job: str) -> str:
        """What the launchpad fills in."""
        text: str = self.query(
            """query($selector: PipelineSelector!) { runConfigSchemaOrError(selector: $selector, mode: "default") {
                 ... on RunConfigSchema { rootDefaultYaml } } }""",
            selector={"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "pipelineName": job},
        )["runConfigSchemaOrError"]["rootDefaultYaml"]
        return text

    def run_ids(self) -> set[str]:
        """Of all runs."""
        return {
            run["runId"] for run in self.query("{ runsOrError { ... on Runs { results { runId } } } }")["runsOrError"]["results"]
        }

    def status(self, run_id: str) -> str:
        """Of a run."""
        status: str = self.query("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id)["runOrError"][
            "status"
        ]
        return status

    def wait(self, run_id: str, timeout_s: float = RUN_S) -> str:
        """The final status of a run."""
        return wait_for("the run's end", lambda: status if (status := self.status(run_id)) in FINAL else None, timeout_s)

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """The events of a run until now."""
        events: list[dict[str, Any]] = self.query(
            """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events { __typename
                 ... on MessageEvent { message level eventType }
                 ... on ExecutionStepFailureEvent { error { message } failureMetadata { description
                      metadataEntries { label ... on MarkdownMetadataEntry { mdStr } ... on TextMetadataEntry { text } } } }
                 ... on LogsCapturedEvent { fileKey } } } } }""",
            id=run_id,
        )["logsForRun"]["events"]
        return events

    def captured(self, run_id: str) -> dict[str, str]:
        """Standard output and error of the run's step as its tabs in the UI show them until now."""
        keys = [event["fileKey"] for event in self.events(run_id) if event["__typename"] == "LogsCapturedEvent"]
        if not keys:
            return {"stdout": "", "stderr": ""}
        data = self.query(
            "query($key: [String!]!) { capturedLogs(logKey: $key) { stdout stderr } }",
            key=[run_id, "compute_logs", keys[0]],
        )["capturedLogs"]
        return {name: data[name] or "" for name in ("stdout", "stderr")}

    def terminate(self, run_id: str) -> str:
        """Press Terminate."""
        answer: str = self.query(
            """mutation($id: String!) { terminateRun(runId: $id, terminatePolicy: SAFE_TERMINATE) {
                 __typename ... on TerminateRunFailure { message } } }""",
            id=run_id,
        )["terminateRun"]["__typename"]
        return answer

    def runs_of(self, job: str) -> list[dict[str, str]]:
        """Of a job, the newest first: `runId` and `status`."""
        runs: list[dict[str, str]] = self.query(
            "query($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs { results { runId status } } } }",
            filter={"pipelineName": job},
        )["runsOrError"]["results"]
        return runs

    def instigators(self) -> dict[str, str]:
        """Whether each sensor and schedule is `RUNNING`."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__"}
        data = self.query(
            """query($selector: RepositorySelector!) {
                 sensorsOrError(repositorySelector: $selector) { ... on Sensors { results { name sensorState { status } } } }
                 schedulesOrError(repositorySelector: $selector) { ... on Schedules { results { name scheduleState { status } } } } }""",
            selector=selector,
        )
        sensors = {one["name"]: one["sensorState"]["status"] for one in data["sensorsOrError"]["results"]}
        return sensors | {one["name"]: one["scheduleState"]["status"] for one in data["schedulesOrError"]["results"]}

    def check_history(self, *key: str, check: str) -> list[dict[str, Any]]:
        """The evaluations of a check, the newest first: `success`, `severity`, `description`, and metadata by label."""
        found = self.query(
            """query($key: AssetKeyInput!, $check: String!) { assetCheckExecutions(assetKey: $key, checkName: $check, limit: 50) {
                 runId evaluation { success severity description metadataEntries { label __typename
                   ... on IntMetadataEntry { intValue } ... on FloatMetadataEntry { floatValue }
                   ... on TableMetadataEntry { table { records schema { columns { name } } } } } } } }""",
            key={"path": list(key)},
            check=check,
        )["assetCheckExecutions"]
        evaluated = [(one["runId"], one["evaluation"]) for one in found if one["evaluation"]]
        return [
            {**one, "runId": run_id, "metadata": {entry["label"]: _entry(entry) for entry in one["metadataEntries"]}}
            for run_id, one in evaluated
        ]

    def latest_materialization(self, *key: str) -> dict[str, Any]:
        """Of an asset: its tags, and its metadata by label."""
        found = self.query(
            """query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
                 assetMaterializations(limit: 1) { runId tags { key value } metadataEntries { label __typename
                   ... on TextMetadataEntry { text } ... on IntMetadataEntry { intValue }
                   ... on FloatMetadataEntry { floatValue } ... on BoolMetadataEntry { boolValue }
                   ... on PathMetadataEntry { path } ... on MarkdownMetadataEntry { mdStr }
                   ... on JsonMetadataEntry { jsonString }
                   ... on TableMetadataEntry { table { records schema { columns { name } } } } } } } } }""",
            key={"path": list(key)},
        )["assetOrError"]["assetMaterializations"][0]
        return {
            "runId": found["runId"],
            "tags": {tag["key"]: tag["value"] for tag in found["tags"]},
            "metadata": {entry["label"]: _entry(entry) for entry in found["metadataEntries"]},
        }


def _entry(entry: dict[str, Any]) -> Any:
    if entry["__typename"] == "TableMetadataEntry":
        return [json.loads(record) for record in entry["table"]["records"]]
    return next((value for name, value in entry.items() if name not in ("label", "__typename")), None)


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _selector(job: str) -> dict[str, Any]:
    return {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "jobName": job}
