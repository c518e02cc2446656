"""Executions as a pandas frame, for notebooks and reports."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from forge_orchestration.errors import SpecError
from forge_orchestration.model.reasons import EndReason, Status

if TYPE_CHECKING:
    import pandas as pd

# column → dtype, in the frame's order; `docs/metrics.md` says what each holds
DTYPES: dict[str, str] = {
    "execution_id": "string", "analysis": "string", "runtime": "string", "executor": "string", "host": "string",
    "status": "category", "end_reason": "category", "message": "string", "attempt": "Int64", "exit_code": "Int64",
    "suspect": "boolean", "protections_off": "string", "content_digest": "string", "dagster_run_id": "string",
    "queued_at": "datetime64[ns, UTC]", "started_at": "datetime64[ns, UTC]", "ended_at": "datetime64[ns, UTC]",
    "queue_s": "float64", "wall_s": "float64", "cpu_s": "float64",
    "peak_memory_bytes": "float64", "peak_pids": "float64", "peak_scratch_bytes": "float64", "io_read_bytes": "float64", "io_write_bytes": "float64",
    "memory_limit_bytes": "float64", "cpus_limit": "float64", "pids_limit": "float64", "scratch_limit_bytes": "float64",
    "memory_use_ratio": "float64", "cpu_use_ratio": "float64", "scratch_use_ratio": "float64",
}  # fmt: skip
_CATEGORIES = {"status": [str(one) for one in Status], "end_reason": [str(one) for one in EndReason]}
_TIMES = ("queued_at", "started_at", "ended_at")


def executions_frame(
    *, analysis: str | None = None, status: str | None = None, since: datetime | str | None = None
) -> pd.DataFrame:
    """One row an execution of this deployment, the oldest first.

    Args:
        analysis: Only of this analysis.
        status: Only with this status, such as `failed`.
        since: Only those that were asked for at this moment or later: a `datetime` (UTC if it has no zone), or text such as
            `2026-01-31` or `2026-01-31T12:00+01:00`.

    Returns:
        The columns of `DTYPES`. Times are UTC, `_s` seconds, `_bytes` bytes, `cpus_limit` cores; a ratio is use by the limit that
        was enforced. What was not measured is missing (`NaN`, `NaT`, `NA`).

    Raises:
        SpecError: There is no such status, or `since` is no moment.
        StoreError: The store cannot be read.
    """
    import pandas as pd

    if status is not None and status not in list(Status):
        raise SpecError(f"'{status:.80}' is no status.", f"They are: {', '.join(Status)}.")
    rows = _rows(analysis, _moment(since))
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in DTYPES}
    frame = pd.DataFrame({name: _column(name, columns[name]) for name in DTYPES})
    frame["queue_s"] = (frame["started_at"] - frame["queued_at"]).dt.total_seconds().clip(lower=0)
    frame["memory_use_ratio"] = frame["peak_memory_bytes"] / frame["memory_limit_bytes"]
    frame["cpu_use_ratio"] = frame["cpu_s"] / (frame["wall_s"] * frame["cpus_limit"])
    frame["scratch_use_ratio"] = frame["peak_scratch_bytes"] / frame["scratch_limit_bytes"]
    if status is not None:
        frame = frame[frame["status"] == status].reset_index(drop=True)
    return frame


def _column(name: str, values: list[Any]) -> pd.Series[Any]:
    import pandas as pd

    if name in _CATEGORIES:
        return pd.Series(pd.Categorical(values, categories=_CATEGORIES[name]))
    if name in _TIMES:
        moments = pd.to_datetime(pd.Series(values, dtype="float64"), unit="s", utc=True).dt.round("us")
        return moments.astype("datetime64[ns, UTC]")
    if DTYPES[name] == "boolean":
        values = [None if value is None else bool(value) for value in values]
    return pd.Series(values, dtype=DTYPES[name])


def _moment(since: datetime | str | None) -> float:
    import pandas as pd

    if since is None:
        return 0.0
    try:
        moment = pd.Timestamp(since)
        zoned = moment.tz_localize("UTC") if moment.tzinfo is None else moment
        return float(zoned.timestamp())
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise SpecError(f"since={since!r:.80} is no moment.", "Give a datetime, or text such as 2026-01-31T12:00.") from error


def _rows(analysis: str | None, since: float) -> list[dict[str, object]]:
    """From the index; of executions that have not ended, from their records, which know more."""
    from contextlib import closing

    from forge_orchestration.executions.rows import row_of
    from forge_orchestration.executions.statistics import rows
    from forge_orchestration.executions.store import Store
    from forge_orchestration.metrics.present import active
    from forge_orchestration.settings import load_settings, make_home

    settings = load_settings()
    make_home(settings)
    with closing(Store(settings.store_path)) as store:
        found = rows(store, analysis, since)
        known = {record.execution_id: row_of(record) for record in active(store, settings)}
    return [known.get(str(row["execution_id"]), row) for row in found]
