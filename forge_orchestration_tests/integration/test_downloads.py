"""Inputs from a web server on loopback that does what servers do: stops in the middle, changes its file, never ends."""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forge_orchestration.errors import BackendUnavailableError, CanceledError, SpecError
from forge_orchestration.executions import downloads
from forge_orchestration.executions.downloads import Download, as_source, fetch
from forge_orchestration.model.sections import DownloadSettings
from forge_orchestration_tests.conftest import PATIENCE, Forge, wait_until

pytestmark = pytest.mark.together

CONTENT = random.Random(24).randbytes(3 << 20)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `CONTENT`; `behave` may do something else, and says whether it did."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.behave: Callable[[http.server.BaseHTTPRequestHandler, int], bool] = lambda handler, number: False
        self.gives_parts = True

    def url(self, path: str = "/data.bin") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if self.server.behave(self, len(self.server.asked)):
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.gives_parts else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_WAIT_S", 0.02)


def cut_off_after(count: int, times: int) -> Callable[[http.server.BaseHTTPRequestHandler, int], bool]:
    """The connection ends after so many bytes, the first times."""

    def behave(handler: http.server.BaseHTTPRequestHandler, number: int) -> bool:
        if number > times:
            return False
        wanted = handler.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(CONTENT) - start))
        handler.end_headers()
        handler.wfile.write(CONTENT[start : start + count])
        handler.close_connection = True
        return True

    return behave


def answers(status: int, times: int = 10**6) -> Callable[[http.server.BaseHTTPRequestHandler, int], bool]:
    def behave(handler: http.server.BaseHTTPRequestHandler, number: int) -> bool:
        if number <= times:
            handler.send_error(status)
        return number <= times

    return behave


def endless(handler: http.server.BaseHTTPRequestHandler, number: int) -> bool:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"x" * 65536)
    except OSError:
        handler.close_connection = True
    return True


class TestAnAnalysis:
    @pytest.fixture
    def analysis(self, tmp_path: Path, server: Server) -> Path:
        folder = tmp_path / "analyses" / "size"
        folder.mkdir(parents=True)
        (folder / "analysis.yaml").write_text(
            "runtime: forge-python\ncommand: [sh, -c, 'sha256sum < $FORGE_INPUTS/data > $FORGE_OUTPUTS/sum; id -u']\noutputs: {sum: sum}\n"
            f"inputs: {{data: {{url: '{server.url()}', sha256: {SHA256}}}}}\nparams: {{n: {{type: int, default: 1}}}}\n"
        )
        return folder

    def test_reads_what_was_fetched_once(self, other_forge: Forge, analysis: Path, server: Server) -> None:
        first = other_forge.record("run", analysis)
        assert first.succeeded, first.message
        assert Path(first.folder, "outputs", "sum").read_text().split()[0] == SHA256
        (facts,) = first.inputs
        assert (facts.sha256, facts.bytes, facts.source) == (SHA256, len(CONTENT), as_source(server.url(), SHA256))
        assert other_forge.record("run", analysis, "--param", "n=2").succeeded
        bare = other_forge.record("exec", "--input", f"x={as_source(server.url('/elsewhere'), SHA256)}", "--", "true")
        assert bare.succeeded and len(server.asked) == 1, "its content is known, whatever it is called"

    def test_whose_result_is_there_fetches_nothing(self, other_forge: Forge, analysis: Path, server: Server) -> None:
        first = other_forge.record("run", analysis)
        kept = other_forge.home / "cache" / "downloads" / SHA256
        kept.unlink()
        second = other_forge.record("run", analysis)
        assert second.cache.hit and second.inputs == first.inputs and len(server.asked) == 1
        assert other_forge("why", analysis).stdout.startswith("It would not run")

    def test_does_not_read_a_kept_file_that_was_changed(self, other_forge: Forge, analysis: Path, server: Server) -> None:
        other_forge.record("run", analysis)
        kept = other_forge.home / "cache" / "downloads" / SHA256
        kept.chmod(0o644)
        kept.write_bytes(b"changed")
        again = other_forge.record("run", analysis, "--cache", "refresh")
        assert again.succeeded and Path(again.folder, "outputs", "sum").read_text().split()[0] == SHA256
        assert len(server.asked) == 2

    def test_ctrl_c_while_it_is_fetched(self, other_forge: Forge, analysis: Path, server: Server) -> None:
        server.behave = endless
        with other_forge.started("run", analysis) as process:
            wait_until("it", lambda: server.asked)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert process.wait(30 * PATIENCE) == 130
        assert other_forge.executions() == set()

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("https://127.0.0.1/x", "does not say what its content is"), ("http://127.0.0.1/x#sha256=12", "Write it as URL#sha256="),
            (f"http://a b/#sha256={SHA256}", "does not say"),
            (f"http://evil.example\\@127.0.0.1/x#sha256={SHA256}", "does not say"),
        ],
    )  # fmt: skip
    def test_a_wrong_one_is_a_sentence(self, other_forge: Forge, source: str, said: str) -> None:
        done = other_forge("exec", "--input", f"x={source}", "--", "true")
        assert done.returncode in (2, 5) and said in done.stderr and done.stderr.count("\n") == 1, done
        assert other_forge.executions() == set()

    def test_of_a_host_that_is_not_allowed(self, other_forge: Forge, server: Server) -> None:
        (other_forge.home / "settings.toml").write_text('[downloads]\nhosts = ["*.example.org"]\nmax = "1MiB"\n')
        done = other_forge("exec", "--input", f"x={as_source(server.url(), SHA256)}", "--", "true")
        assert done.returncode == 2 and "is of host '127.0.0.1', and nothing is fetched from there" in done.stderr
        (other_forge.home / "settings.toml").write_text('[downloads]\nmax = "1MiB"\n')
        done = other_forge("exec", "--input", f"x={as_source(server.url(), SHA256)}", "--", "true")
        assert done.returncode == 2 and "is larger than 1.0 MiB" in done.stderr

    @pytest.mark.parametrize(
        "source", ["{url: 'ftp://a/b', sha256: S}", "{url: 'https://a/b'}", "{path: x, url: 'https://a/b', sha256: S}", "{description: x}",
                   "{path: x, sha256: S}", "{url: 'https://a/{partition}', sha256: S}"],
    )  # fmt: skip
    def test_a_wrong_definition_is_a_sentence(self, other_forge: Forge, tmp_path: Path, source: str) -> None:
        folder = tmp_path / "wrong"
        folder.mkdir()
        (folder / "analysis.yaml").write_text(f"command: ['true']\ninputs: {{i: {source.replace('S', SHA256)}}}\n")
        done = other_forge("run", folder)
        assert done.returncode == 2 and "Input 'i' in " in done.stderr, done


class TestFetch:
    def fetch(
        self, folder: Path, server: Server, sha256: str = SHA256, cancel: threading.Event | None = None, **settings: object
    ) -> Path:
        return fetch("x", Download(url=server.url(), sha256=sha256), folder, DownloadSettings(**settings), cancel)  # type: ignore[arg-type]

    def test_what_was_cut_off_goes_on_where_it_was(self, tmp_path: Path, server: Server) -> None:
        server.behave = cut_off_after(1 << 20, times=2)
        assert self.fetch(tmp_path, server).read_bytes() == CONTENT
        assert [wanted for _, wanted in server.asked] == [None, f"bytes={1 << 20}-", f"bytes={2 << 20}-"]
        assert sorted(path.name for path in (tmp_path / "downloads").iterdir()) == [SHA256, f"{SHA256}.lock"]

    def test_and_the_next_command_goes_on_too(self, tmp_path: Path, server: Server) -> None:
        server.behave = cut_off_after(1000, times=5)
        with pytest.raises(
            Exception, match=r"cannot be fetched: .*; 4.9 KiB have come. Try again later: it goes on there."
        ) as told:
            self.fetch(tmp_path, server)
        assert getattr(told.value, "transient", False)
        assert self.fetch(tmp_path, server).read_bytes() == CONTENT
        assert server.asked[-1][1] == "bytes=5000-"

    def test_a_server_that_gives_no_parts(self, tmp_path: Path, server: Server) -> None:
        server.behave, server.gives_parts = cut_off_after(1 << 20, times=1), False
        assert self.fetch(tmp_path, server).read_bytes() == CONTENT

    def test_one_that_had_come_whole(self, tmp_path: Path, server: Server) -> None:
        (tmp_path / "downloads").mkdir()
        (tmp_path / "downloads" / f"{SHA256}.part").write_bytes(CONTENT)
        assert self.fetch(tmp_path, server).read_bytes() == CONTENT

    def test_another_content_is_refused_and_forgotten(self, tmp_path: Path, server: Server) -> None:
        with pytest.raises(Exception, match=f"its sha256 is {SHA256}, and should be {'0' * 64}"):
            self.fetch(tmp_path, server, "0" * 64)
        assert [path.suffix for path in (tmp_path / "downloads").iterdir()] == [".lock"]

    def test_a_part_of_another_file_is_no_way_out(self, tmp_path: Path, server: Server) -> None:
        (tmp_path / "downloads").mkdir()
        (tmp_path / "downloads" / f"{SHA256}.part").write_bytes(b"other")
        with pytest.raises(Exception, match="has another content"):
            self.fetch(tmp_path, server)
        assert self.fetch(tmp_path, server).read_bytes() == CONTENT, "it was forgotten"

    @pytest.mark.parametrize("status", [403, 404, 410])
    def test_a_refusal_is_told_at_once(self, tmp_path: Path, server: Server, status: int) -> None:
        server.behave = answers(status)
        with pytest.raises(Exception, match=f"the server answers {status} "):
            self.fetch(tmp_path, server)
        assert len(server.asked) == 1

    def test_a_server_in_trouble_is_asked_again(self, tmp_path: Path, server: Server) -> None:
        server.behave = answers(503, times=2)
        assert self.fetch(tmp_path, server).read_bytes() == CONTENT

    def test_one_that_is_not_there(self, tmp_path: Path, server: Server) -> None:
        server.shutdown()
        server.server_close()
        with pytest.raises(Exception, match="cannot be fetched: .*refused; 0 B have come"):
            self.fetch(tmp_path, server)

    def test_one_without_end(self, tmp_path: Path, server: Server) -> None:
        server.behave = endless
        with pytest.raises(Exception, match="is larger than 8.0 MiB"):
            self.fetch(tmp_path, server, max_bytes=8 << 20)
        with pytest.raises(Exception, match=r"it takes longer than 0\.5"):
            self.fetch(tmp_path, server, max_s=0.5)

    def test_one_that_says_nothing(self, tmp_path: Path, server: Server) -> None:
        def silent(handler: http.server.BaseHTTPRequestHandler, number: int) -> bool:
            handler.send_response(200)
            handler.send_header("Content-Length", "9")
            handler.end_headers()
            time.sleep(1)
            return True

        server.behave = silent
        with pytest.raises(Exception, match="cannot be fetched: .*timed out"):
            self.fetch(tmp_path, server, silence_s=0.1)

    def test_where_a_server_sends_us_must_be_allowed_too(self, tmp_path: Path, server: Server) -> None:
        def elsewhere(host: str) -> Callable[[http.server.BaseHTTPRequestHandler, int], bool]:
            def behave(handler: http.server.BaseHTTPRequestHandler, number: int) -> bool:
                if handler.path != "/data.bin":
                    return False
                handler.send_response(302)
                handler.send_header("Location", f"http://{host}:{server.server_address[1]}/there")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return True

            return behave

        server.behave = elsewhere("localhost")
        with pytest.raises(Exception, match="is of host 'localhost', and nothing is fetched from there"):
            self.fetch(tmp_path, server, hosts=("127.0.0.1",))
        assert [path for path, _ in server.asked] == ["/data.bin"]
        assert self.fetch(tmp_path, server, hosts=("127.0.0.1", "localhost")).read_bytes() == CONTENT

    def test_two_fetch_it_once(self, tmp_path: Path, server: Server) -> None:
        threads = [threading.Thread(target=self.fetch, args=(tmp_path, server)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.asked) == 1 and (tmp_path / "downloads" / SHA256).read_bytes() == CONTENT

    def test_canceled(self, tmp_path: Path, server: Server) -> None:
        server.behave, cancel = endless, threading.Event()
        threading.Timer(0.2, cancel.set).start()
        with pytest.raises(CanceledError):
            self.fetch(tmp_path, server, cancel=cancel)


@pytest.fixture(scope="module")
def bucket() -> Iterator[object]:
    """A server that answers as S3 does, and the client that talks to the real one."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
                            "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"}.items():  # fmt: skip
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="reads")
        client.put_object(Bucket="reads", Key="run1/data.bin", Body=CONTENT)
        yield client
    server.stop()


class TestFromS3:
    def test_an_object_by_its_content(self, bucket: object, tmp_path: Path) -> None:
        wanted = Download(url="s3://reads/run1/data.bin", sha256=SHA256)
        assert fetch("x", wanted, tmp_path, DownloadSettings()).read_bytes() == CONTENT

    def test_goes_on_where_it_was_cut_off(self, bucket: object, tmp_path: Path) -> None:
        part = tmp_path / "downloads" / f"{SHA256}.part"
        part.parent.mkdir()
        part.write_bytes(CONTENT[: 2 << 20])
        before = os.stat(part).st_ino
        wanted = Download(url="s3://reads/run1/data.bin", sha256=SHA256)
        got = fetch("x", wanted, tmp_path, DownloadSettings())
        assert got.read_bytes() == CONTENT and os.stat(got).st_ino == before, "what had come was not fetched again"

    def test_another_content_or_none(self, bucket: object, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="has another content than was declared"):
            fetch("x", Download(url="s3://reads/run1/data.bin", sha256="0" * 64), tmp_path, DownloadSettings())
        with pytest.raises(SpecError, match="there is no such object"):
            fetch("x", Download(url="s3://reads/none", sha256=SHA256), tmp_path, DownloadSettings())
        with pytest.raises(SpecError, match=r"is larger than 1\.0 KiB"):
            fetch("x", Download(url="s3://reads/run1/data.bin", sha256=SHA256), tmp_path, DownloadSettings(max_bytes=1024))
        assert [name for name in os.listdir(tmp_path / "downloads") if not name.endswith(".lock")] == []

    def test_only_from_buckets_that_are_allowed(self, bucket: object) -> None:
        with pytest.raises(SpecError, match="is of host 'reads', and nothing is fetched from there"):
            downloads.parsed("x", f"s3://reads/x#sha256={SHA256}", DownloadSettings(hosts=("*.org",)))

    def test_a_server_that_does_not_answer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
                            "AWS_MAX_ATTEMPTS": "1"}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        with pytest.raises(BackendUnavailableError, match="cannot be fetched"):
            fetch("x", Download(url="s3://reads/x", sha256=SHA256), tmp_path, DownloadSettings())
