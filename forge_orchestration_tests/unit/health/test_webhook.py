"""Changes are posted to a real server: one that takes them, and servers that do not, each in its own way."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from forge_orchestration.health.changes import Change
from forge_orchestration.health.webhook import deliver
from forge_orchestration.model.sections import HealthSettings
from forge_orchestration_tests.webhook_server import WebhookServer

SECRET = "s3cret-in-the-path"


@pytest.fixture
def server() -> Iterator[WebhookServer]:
    with WebhookServer() as made:
        yield made


def change(check: str = "seal") -> Change:
    return Change(
        target="r", check=check, change="worse", severity="error", finding="ö.py was edited", remedy="repair", since=0.0, at=90.0
    )


def settings(url: str, timeout_s: float = 5.0) -> HealthSettings:
    return HealthSettings(webhook_url=url, webhook_timeout_s=timeout_s)


def test_what_arrives(server: WebhookServer) -> None:
    assert deliver([change(), change("disk")], settings(f"{server.url}/{SECRET}")) == ([], "")
    first, second = server.bodies
    assert first == {
        "host": socket.gethostname(), "target": "r", "check": "seal", "change": "worse", "severity": "error",
        "finding": "ö.py was edited", "remedy": "repair", "since": "1970-01-01T00:00:00+00:00", "at": "1970-01-01T00:01:30+00:00",
    }  # fmt: skip
    assert second["check"] == "disk"
    assert server.paths == [f"/{SECRET}"] * 2


@pytest.mark.parametrize("status", [302, 307, 404, 500])
def test_another_answer_keeps_the_change_and_ends_the_posting(server: WebhookServer, status: int) -> None:
    server.statuses = [200, status]
    changes = [change(name) for name in ("a", "b", "c")]
    left, why = deliver(changes, settings(f"{server.url}/{SECRET}"))
    assert (left, why) == (changes[1:], f"it answers with status {status}")
    assert len(server.bodies) == 2, "no second try, no other change, no redirect followed"
    assert deliver(left, settings(server.url)) == ([], "")


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/{SECRET}"
        left, why = deliver([change()], settings(url))
    assert left == [change()] and "Connection refused" in why and SECRET not in why


def test_a_server_that_drips_its_answer_takes_no_longer_than_the_timeout() -> None:
    """Each byte meets the timeout of the socket; all of them together do not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    for _ in range(60):
                        connection.sendall(b"H")
                        time.sleep(0.1)
                except OSError:
                    pass

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        started = time.monotonic()
        left, why = deliver([change(), change("b")], settings(f"http://127.0.0.1:{listener.getsockname()[1]}", 0.5))
        assert time.monotonic() - started < 3
        assert len(left) == 2 and "within" in why
        thread.join(10)


@pytest.mark.parametrize("url", [f"http://127.0.0.1:{SECRET}/", f"http://[{SECRET}/", f"http://127.0.0.1:1/{SECRET}\x7f"])
def test_a_url_that_is_none_is_a_reason_and_not_repeated(url: str) -> None:
    left, why = deliver([change()], settings(url, 1.0))
    assert left and why and SECRET not in why


def test_the_url_may_be_in_the_environment(server: WebhookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    left, why = deliver([change()], settings("env:FORGE_TEST_WEBHOOK"))
    assert left and "FORGE_TEST_WEBHOOK is not set" in why
    monkeypatch.setenv("FORGE_TEST_WEBHOOK", f"file:///etc/{SECRET}")
    left, why = deliver([change()], settings("env:FORGE_TEST_WEBHOOK"))
    assert left and "http" in why and SECRET not in why
    monkeypatch.setenv("FORGE_TEST_WEBHOOK", server.url)
    assert deliver([change()], settings("env:FORGE_TEST_WEBHOOK")) == ([], "")
    assert len(server.bodies) == 1


def test_without_a_url_nothing_is_kept() -> None:
    assert deliver([change()], HealthSettings()) == ([], "")


def test_what_is_posted_is_json(server: WebhookServer) -> None:
    deliver([change()], settings(server.url))
    assert server.types == ["application/json"] and json.dumps(server.bodies)
