"""Passwords stay out of everything that is shown, however a URL is written."""

from __future__ import annotations

import pytest

from forge_orchestration.model.database_url import DatabaseUrl


@pytest.mark.parametrize(
    ("whole", "shown", "password"),
    [
        ("postgresql://u@/db?host=/run/pg", "postgresql://u@/db?host=/run/pg", None),
        ("postgresql+psycopg2://u:p%2Fs@h:5/db?sslmode=require", "postgresql://u@h:5/db?sslmode=require", "p/s"),
        ("postgres://u:p@ss@h/db", "postgresql://u@h/db", "p@ss"),
        ("postgresql:///db?password=z%20z&host=/a%20b", "postgresql:///db?host=/a%20b", "z z"),
        ("postgresql://h1:5432,[::1]:5433/db", "postgresql://h1:5432,[::1]:5433/db", None),
        ("mysql+pymysql://u:secret@h/db", "mysql://u@h/db", "secret"),
        ("sqlite:////a b/ü?'.db", "sqlite:////a b/ü?'.db", None),
    ],
)
def test_the_password_is_apart(whole: str, shown: str, password: str | None) -> None:
    url = DatabaseUrl(whole)
    assert (url.without_password, url.password) == (shown, password)


@pytest.mark.parametrize(
    "whole",
    ["lab", "postgresql://u:hun/ter@h/db", "postgresql://u:hun?ter@h/db", "postgresql://u:hun#ter@h/db", "mysql://u:12/hunter@h/db", "x://[hunter"],
)  # fmt: skip
def test_one_that_cannot_be_read_shows_nothing_of_itself(whole: str) -> None:
    with pytest.raises(ValueError, match="its URL") as caught:
        DatabaseUrl(whole)
    assert "hun" not in str(caught.value) and "12" not in str(caught.value)


def test_what_a_driver_says_is_shown_without_it() -> None:
    url = DatabaseUrl("mysql://u:p%40ss@h/db?ssl_key=abc&charset=utf8")
    said = url.hidden("cannot connect with p@ss (p%40ss) and abc by mysql://u:p%40ss@h/db?ssl_key=abc&charset=utf8, utf8")
    assert said == "cannot connect with … (…) and … by …, utf8"
