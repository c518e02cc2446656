"""Checks that an analysis declares and reports on: in its record, at the terminal, and as Dagster's asset checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from forge_orchestration_tests.integration.dagster_support import Deployment

pytestmark = pytest.mark.together

SCRIPT = """
    import json, os
    say = json.loads(open(os.environ["FORGE_PARAMS"]).read())["say"]
    open(os.environ["FORGE_MESSAGES"], "a").write(say.replace(";", "\\n") + "\\n" if say else "")
    """
DEFINITION = """
    checks: {enough: "At least 500 cells", tidy: ""}
    params: {say: {type: str, default: ""}}
    """
ENOUGH = '{"type": "check", "name": "enough", "passed": false, "message": "only 12 cells", "values": {"cells": 12}}'
TIDY = '{"type": "check", "name": "tidy", "passed": true, "level": "warning"}'


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("checks"))
    made.build_runtime()
    made.add_analysis("checked", SCRIPT, DEFINITION)
    yield made


def test_at_the_terminal_and_in_the_record(deployment: Deployment) -> None:
    said = deployment.forge("run", "checked", "--param", f"say={ENOUGH};{TIDY}")
    record = deployment.records()[-1]
    assert record["checks"] == [
        {"name": "enough", "passed": False, "severity": "error", "message": "only 12 cells", "values": {"cells": 12}},
        {"name": "tidy", "passed": True, "severity": "warning", "message": "", "values": {}},
    ]
    assert record["status"] == "succeeded", "what a check finds is no end of an execution"
    assert record["metadata"] == {}
    assert "failed: only 12 cells" in said


@pytest.mark.parametrize(
    ("say", "sentence"),
    [
        (ENOUGH, "The analysis ended without reporting its declared check tidy"),
        (f"{ENOUGH};{ENOUGH};{TIDY}", "check 'enough' is reported twice"),
        (
            f'{ENOUGH};{TIDY};{{"type": "check", "name": "other", "passed": true}}',
            "check 'other' is not one that the analysis declares",
        ),
    ],
)
def test_what_is_not_as_declared_is_no_success(deployment: Deployment, say: str, sentence: str) -> None:
    with pytest.raises(AssertionError) as told:
        deployment.forge("run", "checked", "--param", f"say={say}")
    record = deployment.records()[-1]
    assert record["end_reason"] == "output_rejected"
    assert sentence in record["message"]
    assert "Traceback" not in str(told.value)


def test_they_are_checks_of_the_asset(deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"ops": {"run_checked": {"config": {"params": {"say": f"{ENOUGH};{TIDY}"}}}}}))
    done = deployment.job_execute("checked", config)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("FORGE_HOME", str(deployment.home))
    with dg.DagsterInstance.from_config(str(deployment.launch_folder())) as instance:
        found = {}
        for name in ("enough", "tidy"):
            key = dg.AssetCheckKey(dg.AssetKey("checked"), name)
            (last,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
            assert last.event is not None and last.event.dagster_event is not None
            found[name] = last.event.dagster_event.asset_check_evaluation_data
    enough, tidy = found["enough"], found["tidy"]
    assert (enough.passed, enough.severity, enough.description) == (False, dg.AssetCheckSeverity.ERROR, "only 12 cells")
    assert enough.metadata["analysis/cells"].value == 12
    assert (tidy.passed, tidy.severity) == (True, dg.AssetCheckSeverity.WARN)
