"""Cron's five fields: what Dagster would refuse is refused where the settings are read, and nothing else."""

from __future__ import annotations

import pytest
from dagster._utils.schedules import is_valid_cron_string

from forge_orchestration.model.cron import check_cron

GOOD = ["0 3 * * *", "*/5 * * * *", "0 0 1 1 7", "15,45 1-5 * * 1-5", "0 22-23/1 31 12 0", "59 23 1-31/2 * *", "  0   3 * * * "]
BAD = ["", "@daily", "0 3 * *", "0 3 * * * *", "60 3 * * *", "0 24 * * *", "0 3 0 * *", "0 3 32 * *", "0 3 * 13 *", "0 3 * * 8",
       "5-1 3 * * *", "*/0 3 * * *", "-1 3 * * *", "a 3 * * *", "0 3 * * *;", "1, 3 * * *", "0.5 3 * * *", "** 3 * * *"]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_times_that_cron_has(text: str) -> None:
    check_cron(text)
    assert is_valid_cron_string(text)


@pytest.mark.parametrize("text", BAD)
def test_what_is_none_is_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        check_cron(text)
