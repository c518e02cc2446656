"""A small HTTP service as a neighbour, and its client: each a process of its own, so that neither measures the other's waiting.

python -m forge_orchestration_tests.neighbours.http_service serve            prints its port
python -m forge_orchestration_tests.neighbours.http_service load PORT RATE SECONDS SKIP_S     prints Load as JSON
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socketserver
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from types import TracebackType

_THREADS = 4
_COMMAND = (sys.executable, "-m", "forge_orchestration_tests.neighbours.http_service")


class HttpService:
    """The service, from `with` to the end of it."""

    def __enter__(self) -> HttpService:
        self._process = subprocess.Popen([*_COMMAND, "serve"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def start_load(self, rate: int, seconds: float, skip_s: float) -> subprocess.Popen[str]:
        """Start a client that sends `rate` requests a second, and counts from the time when each was due."""
        words = [*_COMMAND, "load", str(self._port), str(rate), str(seconds), str(skip_s)]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def latencies_s(self, load: subprocess.Popen[str]) -> tuple[list[float], int]:
        """Wait for the client; its latencies, and how many requests failed."""
        said, _ = load.communicate()
        latencies, failed = json.loads(said)
        return latencies, failed


class _Handler(BaseHTTPRequestHandler):
    """A page of a few KiB that takes some computing, as a small dashboard's would."""

    protocol_version = "HTTP/1.1"
    # a page and its head in one packet, or the kernel waits for the client's acknowledgement in between
    wbufsize = 1 << 16

    def do_GET(self) -> None:
        rows = [{"row": number, "digest": hashlib.sha256(f"{self.path}{number}".encode()).hexdigest()} for number in range(50)]
        body = json.dumps(rows).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


def serve() -> None:
    """Serve on a free port of the loopback until killed."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


def load(port: int, rate: float, seconds: float, skip_s: float) -> tuple[list[float], int]:
    """Latencies in seconds from each request's due time, without those due in the first `skip_s`, and how many failed."""
    latencies: list[float] = []
    failures: list[str] = []
    start = time.monotonic() + 0.05

    def client(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for number in range(first, int(rate * seconds), _THREADS):
            due = start + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                connection.request("GET", f"/{number}")
                answer = connection.getresponse()
                if answer.status != 200 or len(json.loads(answer.read())) != 50:
                    failures.append(f"status {answer.status}")
            except (OSError, http.client.HTTPException, ValueError) as error:
                failures.append(repr(error))
                connection.close()
            if due >= start + skip_s:
                latencies.append(time.monotonic() - due)

    threads = [threading.Thread(target=client, args=(first,)) for first in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, len(failures)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        port, rate, seconds, skip_s = sys.argv[2:]
        print(json.dumps(load(int(port), float(rate), float(seconds), float(skip_s))))
