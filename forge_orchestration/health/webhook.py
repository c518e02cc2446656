"""Telling a web server of a change, as JSON. The URL may be a secret: nothing here repeats it, nor what the server answers."""

from __future__ import annotations

import datetime
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

from forge_orchestration.errors import ForgeError
from forge_orchestration.health.changes import Change
from forge_orchestration.model.sections import HealthSettings


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST becomes a GET, and would look as if it had arrived."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def deliver(changes: Sequence[Change], settings: HealthSettings) -> tuple[list[Change], str]:
    """Post changes in their order until one is not accepted, or the time is over.

    Takes no longer than `webhook_timeout_s`, whatever the server does. A change whose answer came too late is posted again.

    Returns:
        Those that are left for the next time, and why; empty if only the time was over.
    """
    left = list(changes)
    deadline = time.monotonic() + settings.webhook_timeout_s
    try:
        url = settings.webhook()
    except ForgeError as error:
        return left, str(error)
    if not url:
        return [], ""
    while left and (remaining_s := deadline - time.monotonic()) > 0:
        if why := _post(url, left[0], remaining_s):
            return left, why
        left.pop(0)
    return left, ""


def payload(change: Change) -> dict[str, str]:
    """What is posted."""
    return {
        "host": socket.gethostname(), "target": change.target, "check": change.check, "change": change.change, "severity": change.severity,
        "finding": change.finding, "remedy": change.remedy, "since": _time(change.since), "at": _time(change.at),
    }  # fmt: skip


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _post(url: str, change: Change, timeout_s: float) -> str:
    """Post one change; empty once the server has accepted it, else why it has not."""
    said = [f"it has not answered within {timeout_s:.1f} s"]

    def post() -> None:
        said[0] = _try(url, json.dumps(payload(change)).encode(), timeout_s)

    # looking up a name has no timeout, and a server that sends a byte now and then meets every socket's
    thread = threading.Thread(target=post, name="webhook", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return said[0]


def _try(url: str, body: bytes, timeout_s: float) -> str:
    try:
        headers = {"Content-Type": "application/json", "User-Agent": "forge"}
        request = urllib.request.Request(url, body, headers)  # noqa: S310  # settings allow http and https alone
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout_s):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"it answers with status {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        # words of others may hold the URL: those of the operating system alone are repeated
        return f"it cannot be reached ({getattr(reason, 'strerror', None) or type(reason).__name__})"
