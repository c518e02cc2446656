"""Inputs from the web, fetched by control: a sandbox has no network. Kept by content, so that no file is fetched twice.

    cache/downloads/<sha256>        the file, whole and compared with its digest
    cache/downloads/<sha256>.part   as far as it has come; the next attempt goes on there

A URL is fetched only with the digest that its content must have: nobody gets to see what he does not know already.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import msgspec

from forge_orchestration.errors import BackendUnavailableError, CanceledError, SpecError
from forge_orchestration.executions.folder import sync_folder
from forge_orchestration.model.sections import DownloadSettings
from forge_orchestration.units import format_bytes, format_seconds

if TYPE_CHECKING:
    import requests

# without what two parsers may read in two ways: users, backslashes, control characters
_SOURCE = re.compile(r"(?P<url>(https?|s3)://[^\s#@\\\x00-\x1f\x7f]+)#sha256=(?P<sha256>[0-9a-f]{64})")
_REDIRECTS = 5
_ATTEMPTS = 5
_WAIT_S = 1.0
_LEAST_ROOM_BYTES = 256 << 20
_CHUNK = 1 << 18


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """What to fetch, and the digest that it must have."""

    url: str
    sha256: str


def as_source(url: str, sha256: str) -> str:
    """Both as one text, as pip writes it: `https://…#sha256=…`."""
    return f"{url}#sha256={sha256}"


def parsed(name: str, source: str, settings: DownloadSettings) -> Download:
    """What the source of input `name` says.

    Raises:
        SpecError: It has no digest, or is of a host that the deployment does not allow.
    """
    found = _SOURCE.fullmatch(source)
    if found is None:
        raise SpecError(
            f"Input '{name}' ({source}) does not say what its content is.",
            "Write it as URL#sha256=64 hexadecimal digits in lower case.",
        )
    _check_host(f"Input '{name}' ({source})", found["url"], settings)
    return Download(url=found["url"], sha256=found["sha256"])


def _check_host(what: str, url: str, settings: DownloadSettings) -> None:
    host = urlsplit(url).hostname or ""
    if not any(fnmatch.fnmatchcase(host, pattern) for pattern in settings.hosts):
        raise SpecError(
            f"{what} is of host '{host}', and nothing is fetched from there.", "See [downloads] hosts in settings.toml."
        )


def place(cache_dir: Path, download: Download) -> Path:
    """Where it is, once it is there."""
    return cache_dir / "downloads" / download.sha256


def fetch(
    name: str, download: Download, cache_dir: Path, settings: DownloadSettings, cancel: threading.Event | None = None
) -> Path:
    """The file, fetched if it is not there yet; two who want the same one fetch it once.

    Raises:
        SpecError: What is there has another content, is larger than allowed, or the server refuses it.
        BackendUnavailableError: The server does not answer, or has stopped in the middle; what had come is kept.
        CanceledError: `cancel` was set.
    """
    target = place(cache_dir, download)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    what = f"Input '{name}' ({download.url})"
    with _alone(target.with_suffix(".lock"), cancel):
        if target.exists():
            return target
        part = target.with_suffix(".part")
        until = time.monotonic() + settings.max_s
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _go_on(what, download.url, part, settings, until, cancel)
                break
            except _CutOff as error:
                if attempt == _ATTEMPTS or time.monotonic() > until:
                    had = part.stat().st_size if part.exists() else 0
                    raise BackendUnavailableError(
                        f"{what} cannot be fetched: {error}; {format_bytes(had)} have come.", "Try again later: it goes on there."
                    ) from error
                _wait(_WAIT_S * attempt, cancel)
        with open(part, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != download.sha256:
            part.unlink()
            raise SpecError(
                f"{what} has another content than was declared: its sha256 is {digest}, and should be {download.sha256}.",
                "Correct the digest, or look what has become of the file.",
            )
        part.chmod(0o444)
        os.rename(part, target)
        sync_folder(target.parent)
    return target


class _CutOff(Exception):
    """It did not come to its end; another attempt may."""


def _go_on(what: str, url: str, part: Path, settings: DownloadSettings, until: float, cancel: threading.Event | None) -> None:
    """Fetch the rest of a file, or all of it from a server that does not give parts."""
    if url.startswith("s3://"):
        _go_on_with_object(what, url, part, settings, until, cancel)
        return
    import requests  # only who fetches waits for what it loads
    from urllib3.exceptions import HTTPError

    had = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
    try:
        with _answer(what, url, headers, settings) as answer:
            if answer.status_code == 416:  # there is nothing behind what has come: the digest tells whether that is all
                return
            if answer.status_code >= 500 or answer.status_code == 429:
                raise _CutOff(f"the server answers {answer.status_code}")
            if answer.status_code not in (200, 206):
                raise SpecError(f"{what} cannot be fetched: the server answers {answer.status_code} {answer.reason}.")
            had = had if answer.status_code == 206 else 0
            length = answer.headers.get("Content-Length", "")
            whole = had + int(length) if length.isdecimal() else None
            _keep(what, lambda: answer.raw.read1(_CHUNK), part, had, whole, settings, until, cancel)
    except (requests.RequestException, HTTPError, OSError) as error:
        raise _CutOff(_reason(error)) from error


def _go_on_with_object(
    what: str, url: str, part: Path, settings: DownloadSettings, until: float, cancel: threading.Event | None
) -> None:
    """Fetch the rest of an object in S3, with the credentials of this process; a sandbox has none."""
    try:
        import fsspec
        from aiohttp import ClientError as HttpError
        from botocore.exceptions import BotoCoreError, ClientError

        files, path = fsspec.url_to_fs(url, default_cache_type="none", skip_instance_cache=True)
    except ImportError as error:
        raise SpecError(
            f"{what} needs a Python package that is not installed.", "Install it: pip install 'forge-orchestration[s3]'"
        ) from error
    had = part.stat().st_size if part.exists() else 0
    try:
        whole = int(files.info(path)["size"])
        if had > whole:
            had = 0
        with files.open(path, "rb") as source:
            source.seek(had)
            _keep(what, lambda: source.read(min(_CHUNK * 16, whole - source.tell())), part, had, whole, settings, until, cancel)
    except FileNotFoundError as error:
        raise SpecError(f"{what} cannot be fetched: there is no such object.") from error
    except PermissionError as error:
        raise SpecError(
            f"{what} cannot be fetched: {error}.", "Look at the credentials of the process that runs executions."
        ) from error
    except (OSError, BotoCoreError, ClientError, HttpError) as error:
        raise _CutOff(str(error)) from error


def _keep(
    what: str, read: Callable[[], bytes], part: Path, had: int, whole: int | None, settings: DownloadSettings, until: float,
    cancel: threading.Event | None,
) -> None:  # fmt: skip
    """Write what comes behind what has come before: it is there, however it ends."""
    total = had
    with open(part, "ab" if had else "wb", buffering=0) as file:
        while data := read():
            total += len(data)
            if total > settings.max_bytes:
                part.unlink()
                raise SpecError(
                    f"{what} is larger than {format_bytes(settings.max_bytes)}.", "See [downloads] max in settings.toml."
                )
            space = os.statvfs(part.parent)
            if space.f_bavail * space.f_frsize < len(data) + _LEAST_ROOM_BYTES:
                raise SpecError(f"{what} does not fit on the disk of {part.parent}.", "Make room.")
            file.write(data)
            if cancel is not None and cancel.is_set():
                raise CanceledError(f"{what} was being fetched when it was canceled.")
            if time.monotonic() > until:
                raise _CutOff(f"it takes longer than {format_seconds(settings.max_s)}")
        os.fsync(file.fileno())
    if whole is not None and total < whole:
        raise _CutOff(f"it ended after {total} of {whole} bytes")


def _answer(what: str, url: str, headers: dict[str, str], settings: DownloadSettings) -> requests.Response:
    """What the server says, or the one that it sends us to, which must be allowed as well."""
    import requests

    for _ in range(_REDIRECTS):
        answer = requests.get(url, stream=True, headers=headers, timeout=(10, settings.silence_s), allow_redirects=False)
        if not answer.is_redirect:
            return answer
        url = urljoin(url, answer.headers["Location"])
        answer.close()
        if not _SOURCE.fullmatch(as_source(url.partition("#")[0], "0" * 64)):
            raise SpecError(f"{what} cannot be fetched: the server sends us to {url!r:.200}.")
        _check_host(f"{what}, which is now at {url[:200]},", url, settings)
    raise SpecError(f"{what} cannot be fetched: one server sends us to another without end.")


def _reason(error: Exception) -> str:
    """What stands at the bottom of it: the exceptions of the library quote one another."""
    while error.__context__ is not None and isinstance(error.__context__, Exception):
        error = error.__context__
    return str(error) or type(error).__name__


def _wait(seconds: float, cancel: threading.Event | None) -> None:
    if cancel is None:
        time.sleep(seconds)
    elif cancel.wait(seconds):
        raise CanceledError("Canceled while an input was being fetched.")


@contextlib.contextmanager
def _alone(path: Path, cancel: threading.Event | None) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _wait(0.1, cancel)
        yield
    finally:
        os.close(fd)
