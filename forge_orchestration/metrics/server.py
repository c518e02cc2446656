"""The dashboard's server: three addresses, to be read only, on the loopback unless somebody says otherwise.

It knows no passwords: whoever reaches it may read what it shows. A page of another site does not: names are no proof of who asks
(DNS rebinding), so it answers to addresses and to names that are this host's own.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import re
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import msgspec

from forge_orchestration.errors import ForgeError, HostError, SpecError
from forge_orchestration.metrics.exposition import exposition
from forge_orchestration.metrics.status import quest_status
from forge_orchestration.settings import Settings

_TIMEOUT_S = 10.0
_MOST_CONNECTIONS = 32
PAGE = files("forge_orchestration.metrics").joinpath("quest.html").read_text("utf-8")
Answer = tuple[str, bytes]


class Dashboard(socketserver.ThreadingTCPServer):
    """The server, listening once it is made; `serve_forever` answers.

    Args:
        address: An IP address; names that stand for it are resolved by `resolve`.
        settings: Called at each request, so that a change of the settings is seen.
        names: Host names under which it may be asked for, beside addresses and `localhost`.

    Raises:
        HostError: It cannot listen there.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str, port: int, settings: Callable[[], Settings], names: frozenset[str] = frozenset()) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.names = names | {"localhost"}
        self.answers: dict[str, Callable[[], Answer]] = {
            "/": lambda: ("text/html; charset=utf-8", PAGE.encode()),
            "/metrics": lambda: ("text/plain; version=0.0.4; charset=utf-8", exposition(settings())),
            "/api/quests/status": lambda: ("application/json", msgspec.json.encode(quest_status(settings())) + b"\n"),
        }
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            raise HostError(
                f"Nothing can listen on {address} port {port}: {error.strerror or error}.", "Choose another with --port."
            ) from error

    @property
    def url(self) -> str:
        """Where to look."""
        address, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, but not for more than so many."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who goes away in the middle of an answer, or never asks, is no event."""


class _Handler(BaseHTTPRequestHandler):
    server: Dashboard
    server_version = "forge"
    sys_version = ""
    timeout = _TIMEOUT_S
    wbufsize = 1 << 16  # head and body in one packet
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        if not self.path.startswith("/"):  # an address with a host of its own, as for a proxy
            self._say(HTTPStatus.BAD_REQUEST, "The address of a page begins with a slash.")
        elif not self._is_asked_by_name():
            self._say(
                HTTPStatus.MISDIRECTED_REQUEST, "This is no name of this host. Use its address, or: forge dashboard --host NAME"
            )
        elif (answer := self.server.answers.get(target.path)) is None:
            self._say(HTTPStatus.NOT_FOUND, f"There are: {' '.join(self.server.answers)}")
        else:
            try:
                kind, body = answer()
            except ForgeError as error:
                self._say(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            except Exception as error:
                print(f"forge: internal error: {type(error).__name__}: {error}", file=sys.stderr)
                self._say(HTTPStatus.INTERNAL_SERVER_ERROR, "An internal error; the dashboard's standard error says more.")
            else:
                self._send(HTTPStatus.OK, kind, body)

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "It can only be read.")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _is_asked_by_name(self) -> bool:
        """Whether the name under which it is asked for is an address, or one of this host's: no other site can have it."""
        hosts = self.headers.get_all("Host", [])
        try:
            name = urlsplit(f"//{hosts[0]}").hostname or "" if len(hosts) == 1 else ""
        except ValueError:
            return False
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return name.rstrip(".") in self.server.names

    def _say(self, status: HTTPStatus, sentence: str) -> None:
        self._send(status, "text/plain; charset=utf-8", sentence.encode() + b"\n")

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """No line for each request: the page asks every few seconds."""


def _hash(tag: str) -> str:
    """What the policy calls the page's one script or style, which runs because it is exactly this text."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"


_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash('script')}; style-src {_hash('style')}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def resolve(host: str, *, allow_remote: bool) -> str:
    """The address that `host` stands for.

    Raises:
        SpecError: It stands for none, or for one that others can reach, and `allow_remote` was not said.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        address = str(found[0][4][0])
        loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except (OSError, UnicodeError, ValueError) as error:
        raise SpecError(f"--host '{host[:80]}' is no address of this host ({error}).", "Use 127.0.0.1.") from error
    if not loopback and not allow_remote:
        raise SpecError(
            f"--host {host[:80]} can be reached from elsewhere, and the dashboard asks nobody who they are.",
            "Use 127.0.0.1 and a tunnel (ssh -L), or say --allow-remote.",
        )
    return address


@contextlib.contextmanager
def ended_by_signals(server: Dashboard) -> Iterator[None]:
    """SIGTERM and Ctrl-C end `serve_forever`; only in a process' main thread."""

    def stop(number: int, frame: object) -> None:
        threading.Thread(target=server.shutdown, name="forge dashboard end").start()  # it waits for the loop that runs here

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def own_names(host: str) -> frozenset[str]:
    """Names of this host under which it may be asked for: those that nobody else can give it."""
    return frozenset(name.lower().rstrip(".") for name in (host, socket.gethostname()) if name)
