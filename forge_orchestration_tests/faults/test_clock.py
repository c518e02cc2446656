"""The host's clock is set while analyses run: their times and limits are those that passed, and their runs go on.

Only where the clock is nobody else's: in the virtual machine, which says so by `FORGE_TESTS_OWN_CLOCK`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_orchestration_tests.conftest import PATIENCE, leftovers, wait_until
from forge_orchestration_tests.integration.dagster_support import LOOKED_AT_OFTEN, Deployment, wait_for

OWN_CLOCK = "FORGE_TESTS_OWN_CLOCK"
HOURS = 3600.0
NAP_S = 20.0


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    if os.geteuid() != 0 or OWN_CLOCK not in os.environ:
        pytest.skip("this host's clock is not ours to set; `make test-vm` does it in a machine of its own")
    made = Deployment(tmp_path, changed=LOOKED_AT_OFTEN)
    monkeypatch.setenv("FORGE_HOME", str(made.home))
    made.build_runtime()
    made.add_analysis("nap", f"import time\nprint('begun', flush=True)\ntime.sleep({NAP_S})\nprint('done')\n")
    ahead_s = time.time() - time.monotonic()
    yield made
    time.clock_settime(time.CLOCK_REALTIME, time.monotonic() + ahead_s)
    wait_until("nothing left", lambda: leftovers(made.home) == [])


@pytest.mark.timeout(600 * PATIENCE)
@pytest.mark.parametrize("hours", [3, -3])
def test_a_jump(deployment: Deployment, hours: int) -> None:
    with deployment.daemon(), deployment.webserver() as server:
        run_id = server.start("nap", {"limits": {"wall_time": "600s"}})
        # until then it is Dagster's, which waits by the clock: see docs/dagster.md
        wait_for("the nap", lambda: any(one["started_at"] for one in deployment.records() if one["dagster_run_id"] == run_id))
        time.clock_settime(time.CLOCK_REALTIME, time.time() + hours * HOURS)
        assert server.wait(run_id) == "SUCCESS", server.events(run_id)
        assert "0 closed, 0 indexed, 0 leftovers removed" in deployment.forge("gc")
    record = deployment.record_of_run(run_id)
    assert record["end_reason"] == "completed"
    assert NAP_S <= record["usage"]["wall_s"]["value"] < NAP_S + 60 * PATIENCE
    assert "done" in Path(record["logs"]["stdout"]["path"]).read_text()
