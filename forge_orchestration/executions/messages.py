"""From hostile bytes to messages: whatever is not exactly as documented ends the execution, nothing is guessed.

One JSON object a line, either Forge's own (`{"type": "progress", "fraction": 0.4, "message": "…"}`) or one that
`dagster_pipes` wrote. A line is at most a few KiB, so that the kernel keeps lines of concurrent writers apart.
"""

from __future__ import annotations

import base64
import math
import time
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from forge_orchestration.errors import ForgeError
from forge_orchestration.model.messages import Message
from forge_orchestration.model.sections import MessageSettings

_MAX_NAME, _MAX_TEXT, _MAX_VALUES = 128, 4096, 256
_MAX_EXTRAS_BYTES = 64 * 2**10
_PIPES_FIELDS = {"__dagster_pipes_version", "method", "params"}
_PIPES_PARAMS = {
    "opened": {"extras"}, "closed": {"exception"}, "log": {"message", "level"}, "report_custom_message": {"payload"},
    "report_asset_materialization": {"asset_key", "data_version", "metadata"},
    "report_asset_check": {"asset_key", "check_name", "passed", "severity", "metadata"},
}  # fmt: skip
_PIPES_KINDS = ("__infer__", "text", "int", "float", "bool", "json", "md", "url")
_LEVELS = ("debug", "info", "warning", "error", "critical")


class MessageViolation(ForgeError):
    """An analysis broke the rules of its message channel."""


class MessageParser:
    """Cuts a stream into lines and lines into messages, and remembers whether the channel was closed properly.

    Args:
        asset: The analysis: of any other asset it has nothing to say.
        checks: Those that it declares: each is reported once, and no other.
        clock: Seconds, for the rate.
    """

    def __init__(
        self, caps: MessageSettings, asset: str, checks: Collection[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._caps = caps
        self._asset = asset
        self._checks = set(checks)
        self._unreported = dict.fromkeys(checks)
        self._clock = clock
        self._rest = b""
        self._count = self._bytes = 0
        self._is_open = False
        self._second, self._in_second = clock(), 0

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete with `data`.

        Raises:
            MessageViolation: A line is too long, no JSON, of an unknown kind, one too many, there is too much of them, or they come
                too fast.
        """
        self._bytes += len(data)  # blank lines too: reading them costs as much
        if self._bytes > self._caps.max_bytes:
            raise MessageViolation(f"More than {self._caps.max_bytes} bytes of messages.")
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > self._caps.max_line_bytes:
            raise MessageViolation(f"A message is longer than {self._caps.max_line_bytes} bytes.")
        return [self._message(line) for line in lines if line.strip()]

    def finish(self) -> None:
        """The stream has ended.

        Raises:
            MessageViolation: Half a line is left, or a channel was opened and not closed.
        """
        if self._rest.strip():
            raise MessageViolation(f"The last message has no end: {quoted(self._rest)}.")
        if self._is_open:
            raise MessageViolation("The message channel was opened and never closed.")

    @property
    def unreported(self) -> list[str]:
        """Declared checks of which nothing was said until now."""
        return list(self._unreported)

    def _message(self, line: bytes) -> Message:
        self._count += 1
        if self._count > self._caps.max_count:
            raise MessageViolation(f"More than {self._caps.max_count} messages.")
        self._count_rate()
        if len(line) > self._caps.max_line_bytes:
            raise MessageViolation(f"A message is longer than {self._caps.max_line_bytes} bytes.")
        try:
            raw = msgspec.json.decode(line)
            if not isinstance(raw, dict):
                raise ValueError("not an object")
            message = _from_pipes(raw, self._asset) if "__dagster_pipes_version" in raw else msgspec.convert(raw, Message)
            message = _checked(message)
            self._see_check(message)
        except (ValueError, TypeError, KeyError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise MessageViolation(f"A message cannot be used ({_first_line(error)}): {quoted(line)}.") from None
        if message.type in ("opened", "closed"):
            self._is_open = message.type == "opened"
        return message

    def _see_check(self, message: Message) -> None:
        if message.type != "check":
            if message.name or message.passed is not None:
                raise ValueError("name and passed are of a check")
            return
        if message.passed is None:
            raise ValueError("a check says neither that it passed nor that it failed")
        if message.name not in self._unreported:
            why = "is reported twice" if message.name in self._checks else "is not one that the analysis declares"
            raise ValueError(f"check {message.name[:40]!r} {why}")
        del self._unreported[message.name]

    def _count_rate(self) -> None:
        now = self._clock()
        if now - self._second >= 1:
            self._second, self._in_second = now, 0
        self._in_second += 1
        if self._in_second > self._caps.max_per_s:
            raise MessageViolation(f"More than {self._caps.max_per_s} messages within a second.")


def pipes_environment(
    asset: str, run_id: str, params: Mapping[str, object], messages: str, partition: str | None = None
) -> dict[str, str]:
    """What `open_dagster_pipes()` looks for: a script that was written for Dagster Pipes finds this channel by itself."""
    context: dict[str, object] = {
        "asset_keys": [asset], "code_version_by_asset_key": {asset: None}, "provenance_by_asset_key": {asset: None}, "partition_key": partition,
        "partition_key_range": None if partition is None else {"start": partition, "end": partition}, "partition_time_window": None, "run_id": run_id, "job_name": None, "retry_number": 0,
        "extras": dict(params),
    }  # fmt: skip
    if len(msgspec.json.encode(context["extras"])) > _MAX_EXTRAS_BYTES:
        context["extras"] = {}  # the kernel takes no variable of more than 128 KiB; they are in /forge/params.json
    return {
        "DAGSTER_PIPES_CONTEXT": _pipes_parameter({"data": context}),
        "DAGSTER_PIPES_MESSAGES": _pipes_parameter({"path": messages}),
    }


def _pipes_parameter(value: object) -> str:
    return base64.b64encode(zlib.compress(msgspec.json.encode(value))).decode()


def _from_pipes(raw: dict[str, Any], asset: str) -> Message:
    """What `dagster_pipes` writes. A materialization is for trusted code to state, so only its metadata is taken."""
    method, params = raw["method"], raw.get("params") or {}
    if not isinstance(params, dict):
        raise ValueError("params is not an object")
    if not isinstance(method, str) or method not in _PIPES_PARAMS:
        raise ValueError(f"method {str(method)[:40]!r} is not allowed")
    if unknown := sorted((set(raw) - _PIPES_FIELDS) | (set(params) - _PIPES_PARAMS[method])):
        raise ValueError(f"unknown field {unknown[0][:40]!r}")
    match method:
        case "opened" | "closed":
            return Message(type=method)
        case "log":
            return Message(type="log", level=_level(params.get("level", "info")), message=_text(params["message"]))
        case "report_custom_message":
            return Message(type="metadata", values={"message": _text(msgspec.json.encode(params.get("payload")).decode())})
        case "report_asset_materialization":
            _check_asset(params, asset)
            return Message(type="metadata", values=_pipes_values(params))
        case "report_asset_check":
            _check_asset(params, asset)
            return Message(
                type="check", name=_text(params["check_name"]), passed=_boolean(params["passed"]), level=_severity(params.get("severity")),
                values=_pipes_values(params),
            )  # fmt: skip
    raise AssertionError(method)


def _check_asset(params: dict[str, Any], asset: str) -> None:
    if params.get("asset_key") not in (None, asset):
        raise ValueError(f"asset {str(params['asset_key'])[:40]!r} is not this analysis")


def _pipes_values(params: dict[str, Any]) -> dict[str, bool | int | float | str]:
    values = params.get("metadata") or {}
    if not isinstance(values, dict):
        raise ValueError("metadata is not an object")
    return {str(name): _pipes_value(value) for name, value in values.items()}


def _pipes_value(value: Any) -> bool | int | float | str:
    raw = value.get("raw_value") if isinstance(value, dict) else value
    kind = value.get("type", "__infer__") if isinstance(value, dict) else "__infer__"
    if kind not in _PIPES_KINDS:
        raise ValueError(f"metadata of type {str(kind)[:20]!r} is not allowed")
    if kind == "url" and not (isinstance(raw, str) and raw.startswith(("https://", "http://"))):
        raise ValueError("an address is neither http nor https")
    return raw if isinstance(raw, (bool, int, float, str)) else msgspec.json.encode(raw).decode()


def _level(value: Any) -> Any:
    level = str(value).lower()
    if level not in _LEVELS:
        raise ValueError(f"unknown level {level[:20]!r}")
    return level


def _severity(value: Any) -> Any:
    severity = value if value is not None else "ERROR"
    if severity not in ("ERROR", "WARN"):
        raise ValueError(f"unknown severity {str(severity)[:20]!r}")
    return "warning" if severity == "WARN" else "error"


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false expected")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text expected")
    return value


def _checked(message: Message) -> Message:
    if len(message.message) > _MAX_TEXT or len(message.values) > _MAX_VALUES:
        raise ValueError("too long")
    if message.fraction is not None and not 0 <= message.fraction <= 1:
        raise ValueError("fraction is not between 0 and 1")
    for name, value in message.values.items():
        if len(name) > _MAX_NAME or not name.isprintable() or (isinstance(value, str) and len(value) > _MAX_TEXT):
            raise ValueError("a metadata name or value is too long or not printable")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is not finite")
    values = {name: printable(value) if isinstance(value, str) else value for name, value in message.values.items()}
    return msgspec.structs.replace(message, message=printable(message.message), values=values)


def printable(text: str) -> str:
    """`text` without control characters (but line ends and tabs), so that it cannot move a terminal's cursor."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def quoted(data: bytes) -> str:
    """The beginning of untrusted bytes as a short, safe quotation."""
    return repr(data[:80])[1:] + ("…" if len(data) > 80 else "")


def _first_line(error: Exception) -> str:
    return printable(str(error).split("\n")[0][:120])
