"""The dashboard's server: three addresses to read, nothing to write, and no answer to a page of another site."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator

import pytest

from forge_orchestration.errors import HostError, SpecError
from forge_orchestration.executions.store import Store
from forge_orchestration.metrics.server import PAGE, Dashboard, own_names, resolve
from forge_orchestration.settings import Settings, load_settings
from forge_orchestration_tests.unit.executions.test_statistics import record
from forge_orchestration_tests.unit.metrics.conftest import HOSTILE


@pytest.fixture
def server(settings: Settings) -> Iterator[Dashboard]:
    made = Dashboard("127.0.0.1", 0, lambda: load_settings(settings.home), frozenset({"lab.example"}))
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.body = response.status, response.read().decode()
        self.headers = {name.lower(): value for name, value in response.getheaders()}


def ask(server: Dashboard, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    try:
        connection.request(method, path, headers=headers)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def raw(server: Dashboard, request: bytes) -> bytes:
    with socket.create_connection(server.server_address[:2], timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_what_there_is(server: Dashboard) -> None:
    page, metrics, status = (ask(server, path) for path in ("/", "/metrics", "/api/quests/status?x=1"))
    assert [one.status for one in (page, metrics, status)] == [200, 200, 200]
    assert page.body == PAGE and page.headers["content-type"].startswith("text/html")
    assert "forge_build_info{" in metrics.body and metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert json.loads(status.body)["schema_version"] == 1 and status.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/quests/status", "/nothing"])
def test_a_head_is_the_same_without_its_body(server: Dashboard, path: str) -> None:
    got, head = ask(server, path), ask(server, path, "HEAD")
    assert head.body == "" and head.status == got.status
    assert head.headers["content-type"] == got.headers["content-type"] and int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_written(server: Dashboard, method: str) -> None:
    answer = ask(server, "/api/quests/status", method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/x", "/..", "/../../etc/passwd", "/%2e%2e/", "/metrics/", "/api", "/quest.html", "/<script>"])
def test_nothing_else_is_there(server: Dashboard, path: str) -> None:
    answer = ask(server, path)
    assert answer.status == 404 and "script" not in answer.body and answer.headers["content-type"].startswith("text/plain")


class TestNames:
    """DNS rebinding: a page of `evil.example` whose name now stands for 127.0.0.1 asks under its own name."""

    @pytest.mark.parametrize(
        "host", ["127.0.0.1:3030", "localhost", "LOCALHOST:80", "[::1]:3030", "192.0.2.7", "lab.example:3030", "Lab.Example."]
    )
    def test_own_ones_and_addresses(self, server: Dashboard, host: str) -> None:
        assert ask(server, Host=host).status == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:3030", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "127.0.0.1@evil.example", "2130706433.example"]
    )  # fmt: skip
    @pytest.mark.parametrize("path", ["/", "/metrics", "/api/quests/status"])
    def test_all_others(self, server: Dashboard, host: str, path: str) -> None:
        answer = ask(server, path, Host=host)
        assert answer.status == 421 and "forge_" not in answer.body and "schema_version" not in answer.body

    def test_none_or_two(self, server: Dashboard) -> None:
        assert b" 421 " in raw(server, b"GET /metrics HTTP/1.0\r\n\r\n").split(b"\r\n")[0]
        assert b" 421 " in raw(server, b"GET / HTTP/1.0\r\nHost: localhost\r\nHost: evil.example\r\n\r\n").split(b"\r\n")[0]

    def test_one_in_the_address(self, server: Dashboard) -> None:
        answer = raw(server, b"GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 400 ")


@pytest.mark.parametrize(
    "request_line", [b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\xfe\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"G" * 70_000 + b"\r\n\r\n"]
)
def test_what_is_no_request_harms_nobody(server: Dashboard, request_line: bytes) -> None:
    try:
        raw(server, request_line)
    except ConnectionError:
        pass
    assert ask(server).status == 200


def test_every_answer_forbids_what_the_page_does_not_need(server: Dashboard) -> None:
    for path, method in (("/", "GET"), ("/metrics", "GET"), ("/nothing", "GET"), ("/", "POST")):
        headers = ask(server, path, method).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
        assert policy["script-src"].startswith("'sha256-") and "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin" and "access-control-allow-origin" not in headers


def test_the_page_is_all_there_is_and_makes_text_of_what_it_is_told() -> None:
    assert not re.search(r"(?:src|href)=\"(?!data:|/api/quests/status\")", PAGE), "nothing is loaded from elsewhere"
    script = PAGE[PAGE.index("<script>") : PAGE.index("</script>")]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|\.(?:href|src|style)\b|\.on[a-z]+ *=", script
    )
    assert "textContent" in script


def test_an_error_is_a_sentence(server: Dashboard, settings: Settings) -> None:
    (settings.home / "settings.toml").write_text("colour = 5")
    for path in ("/metrics", "/api/quests/status"):
        answer = ask(server, path)
        assert answer.status == 500 and "colour" in answer.body and "Traceback" not in answer.body
    (settings.home / "settings.toml").write_text("")
    assert ask(server, "/metrics").status == 200


def test_an_error_of_ours_says_nothing_to_whoever_asks(server: Dashboard, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    def broken(settings: Settings) -> bytes:
        raise ZeroDivisionError("the secret")

    monkeypatch.setattr("forge_orchestration.metrics.server.exposition", broken)
    answer = ask(server, "/metrics")
    assert answer.status == 500 and "secret" not in answer.body
    assert "ZeroDivisionError: the secret" in capfd.readouterr().err


def test_who_holds_connections_keeps_only_so_many(server: Dashboard) -> None:
    held = [socket.create_connection(server.server_address[:2], timeout=10) for _ in range(40)]
    try:
        refused = 0
        for connection in held[32:]:
            try:
                refused += connection.recv(1) == b""
            except ConnectionError:
                refused += 1
        assert refused == 8
    finally:
        for connection in held:
            connection.close()


def test_hostile_words_are_told_as_json(server: Dashboard, settings: Settings) -> None:
    from forge_orchestration.model.reasons import EndReason

    store = Store(settings.store_path)
    store.save(record(1, EndReason.MEMORY, analysis=HOSTILE, message=HOSTILE))
    store.close()
    assert json.loads(ask(server, "/api/quests/status").body)["last_failures"][0]["message"] == HOSTILE
    assert HOSTILE not in ask(server, "/metrics").body and "\x1b" not in ask(server, "/metrics").body


class TestWhereItListens:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
    def test_on_the_loopback(self, host: str) -> None:
        assert resolve(host, allow_remote=False) in ("127.0.0.1", "::1", "127.1.2.3")

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1"])
    def test_elsewhere_only_if_somebody_says_so(self, host: str) -> None:
        with pytest.raises(SpecError, match="--allow-remote"):
            resolve(host, allow_remote=False)
        assert resolve(host, allow_remote=True)

    @pytest.mark.parametrize("host", ["", "no such host", "999.1.1.1", "x" * 300, "\0"])
    def test_nowhere(self, host: str) -> None:
        with pytest.raises(SpecError, match="--host"):
            resolve(host, allow_remote=True)

    def test_a_port_that_is_taken(self, server: Dashboard, settings: Settings) -> None:
        with pytest.raises(HostError, match="in use"):
            Dashboard("127.0.0.1", server.server_address[1], lambda: settings)

    def test_an_address_that_is_not_this_hosts(self, settings: Settings) -> None:
        with pytest.raises(HostError, match=r"192\.0\.2\.1"):
            Dashboard("192.0.2.1", 0, lambda: settings)

    def test_names_of_this_host(self) -> None:
        assert own_names("Lab.Example.") == {"lab.example", socket.gethostname().lower()}
