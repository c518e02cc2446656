"""The message channel: hostile bytes in, validated messages or one sentence out."""

from __future__ import annotations

import msgspec
import pytest

from forge_orchestration.executions.messages import MessageParser, MessageViolation, printable, quoted
from forge_orchestration.model.messages import Message
from forge_orchestration.model.sections import MessageSettings

CAPS = MessageSettings(max_line_bytes=65536, max_count=1000)
DEEP = b"[" * 20000 + b"]" * 20000


def pipes(method: str, params: str = "null") -> bytes:
    return b'{"__dagster_pipes_version": "0.1", "method": "%s", "params": %s}\n' % (method.encode(), params.encode())


def read(data: bytes, caps: MessageSettings = CAPS) -> list[Message]:
    parser = MessageParser(caps, "mine", ["declared"])
    messages = parser.feed(data)
    parser.finish()
    return messages


class TestGood:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b'{"type": "log", "message": "hi"}\n', Message(type="log", message="hi")),
            (b'{"type": "log", "level": "error", "message": "no"}\n', Message(type="log", level="error", message="no")),
            (b'{"type": "progress", "fraction": 0.5, "message": "half"}\n', Message(type="progress", fraction=0.5, message="half")),
            (b'{"type": "progress", "fraction": 0}\n', Message(type="progress", fraction=0.0)),
            (b'{"type": "progress", "fraction": 1}\n', Message(type="progress", fraction=1.0)),
            (b'{"type": "metadata", "values": {"cells": 700, "ok": true, "q": 0.5, "who": "me"}}\n',
             Message(type="metadata", values={"cells": 700, "ok": True, "q": 0.5, "who": "me"})),
            (pipes("log", '{"message": "hi", "level": "WARNING"}'), Message(type="log", level="warning", message="hi")),
            (pipes("log", '{"message": "hi"}'), Message(type="log", message="hi")),
            (pipes("report_custom_message", '{"payload": {"a": [1]}}'), Message(type="metadata", values={"message": '{"a":[1]}'})),
            (pipes("report_asset_materialization", '{"asset_key": "mine", "data_version": "1", "metadata": {"n": {"raw_value": 5, "type": "int"}}}'),
             Message(type="metadata", values={"n": 5})),
            (pipes("report_asset_materialization", '{"metadata": {"n": 5, "t": {"raw_value": {"a": 1}, "type": "json"}}}'),
             Message(type="metadata", values={"n": 5, "t": '{"a":1}'})),
            (pipes("report_asset_materialization", '{"metadata": null}'), Message(type="metadata")),
            (b'{"type": "check", "name": "declared", "passed": false, "level": "warning", "message": "few", "values": {"n": 3}}\n',
             Message(type="check", name="declared", passed=False, level="warning", message="few", values={"n": 3})),
            (pipes("report_asset_check", '{"asset_key": "mine", "check_name": "declared", "passed": true, "severity": "WARN", "metadata": {"n": 3}}'),
             Message(type="check", name="declared", passed=True, level="warning", values={"n": 3})),
            (pipes("report_asset_check", '{"check_name": "declared", "passed": false}'),
             Message(type="check", name="declared", passed=False, level="error")),
            (pipes("report_asset_materialization", '{"metadata": {"p": {"raw_value": "https://x", "type": "url"}}}'),
             Message(type="metadata", values={"p": "https://x"})),
        ],
        ids=lambda value: ascii(value)[:40] if isinstance(value, bytes) else "",
    )  # fmt: skip
    def test_a_line(self, line: bytes, message: Message) -> None:
        assert read(line) == [message]

    def test_a_stream_in_single_bytes(self) -> None:
        parser = MessageParser(CAPS, "mine", ["declared"])
        stream = '{"type": "log", "message": "ä€💥"}\n\n  \n{"type":"progress","fraction":0.25}\n'.encode()
        messages = [message for index in range(len(stream)) for message in parser.feed(stream[index : index + 1])]
        parser.finish()
        assert [message.type for message in messages] == ["log", "progress"]
        assert messages[0].message == "ä€💥"

    def test_an_integer_of_any_size_survives_being_kept(self) -> None:
        (message,) = read(b'{"type": "metadata", "values": {"a": %s}}\n' % (b"9" * 30))
        assert msgspec.json.decode(msgspec.json.encode(message), type=Message).values == {"a": 10**30 - 1}

    def test_an_opened_and_closed_channel(self) -> None:
        assert [message.type for message in read(pipes("opened", '{"extras": {}}') + pipes("closed"))] == ["opened", "closed"]

    def test_a_script_that_says_nothing(self) -> None:
        assert read(b"") == []


HOSTILE = {
    "no JSON": b"hello\n",
    "half an object": b'{"type": "log", "mess\n',
    "two objects": b'{"type": "log"} {"type": "log"}\n',
    "an array": b'[{"type": "log"}]\n',
    "a number": b"17\n",
    "null": b"null\n",
    "a string": b'"log"\n',
    "bad UTF-8": b'{"type": "log", "message": "\xff\xfe"}\n',
    "a lone surrogate": b'{"type": "log", "message": "\\ud800"}\n',
    "an overlong encoding": b'{"type": "log", "message": "\xc0\xaf"}\n',
    "a NUL byte": b'{"type": "log", "message": "a\x00b"}\n',
    "a raw control character": b'{"type": "log", "message": "\x1b[2J"}\n',
    "UTF-16": '{"type": "log"}\n'.encode("utf-16"),
    "no type": b'{"message": "hi"}\n',
    "an unknown field": b'{"type": "log", "message": "hi", "asset_key": "other/asset"}\n',
    "an unknown type": b'{"type": "materialize"}\n',
    "a type that is a number": b'{"type": 5}\n',
    "a type that is a list": b'{"type": ["log"]}\n',
    "an unknown level": b'{"type": "log", "level": "loud", "message": "x"}\n',
    "a message that is an object": b'{"type": "log", "message": {}}\n',
    "a message that is too long": b'{"type": "log", "message": "%s"}\n' % (b"x" * 5000),
    "a fraction above one": b'{"type": "progress", "fraction": 1.01}\n',
    "a fraction below zero": b'{"type": "progress", "fraction": -0.1}\n',
    "a fraction that is text": b'{"type": "progress", "fraction": "0.5"}\n',
    "a fraction that is NaN": b'{"type": "progress", "fraction": NaN}\n',
    "an infinite fraction": b'{"type": "progress", "fraction": 1e999}\n',
    "NaN as a value": b'{"type": "metadata", "values": {"a": NaN}}\n',
    "infinity as a value": b'{"type": "metadata", "values": {"a": Infinity}}\n',
    "a float that overflows": b'{"type": "metadata", "values": {"a": 1e400}}\n',
    "an integer of 5000 digits": b'{"type": "metadata", "values": {"a": %s}}\n' % (b"9" * 5000),
    "values that are a list": b'{"type": "metadata", "values": [1]}\n',
    "a value that is an object": b'{"type": "metadata", "values": {"a": {"b": 1}}}\n',
    "a value that is null": b'{"type": "metadata", "values": {"a": null}}\n',
    "300 values": b'{"type": "metadata", "values": {%s}}\n' % b",".join(b'"k%d": 1' % number for number in range(300)),
    "a name of 200 characters": b'{"type": "metadata", "values": {"%s": 1}}\n' % (b"n" * 200),
    "a name with an escape": b'{"type": "metadata", "values": {"a\\u001b[31m": 1}}\n',
    "a name with a line end": b'{"type": "metadata", "values": {"a\\nb": 1}}\n',
    "a value of 5000 characters": b'{"type": "metadata", "values": {"a": "%s"}}\n' % (b"v" * 5000),
    "deep nesting": b'{"type": "log", "x": %s}\n' % DEEP,
    "deep nesting alone": DEEP + b"\n",
    "deep nesting in pipes": pipes("report_custom_message", '{"payload": %s}' % ("[" * 5000 + "]" * 5000)),
    "a line that is too long": b'{"type": "log", "message": "' + b"x" * 70000 + b'"}\n',
    "a line without an end": b'{"type": "log", "message": "hi"}',
    "half a line": b'{"type": "lo',
    "64 MiB without an end": b"x" * (64 << 20),
    "opened and not closed": pipes("opened"),
    "pipes: an unknown method": pipes("run_code"),
    "pipes: a method that is a list": b'{"__dagster_pipes_version": "0.1", "method": ["log"], "params": {}}\n',
    "pipes: no method": b'{"__dagster_pipes_version": "0.1", "params": {}}\n',
    "pipes: params that are a list": pipes("log", "[1]"),
    "pipes: params that are text": pipes("log", '"x"'),
    "pipes: a log without a message": pipes("log", '{"level": "INFO"}'),
    "pipes: a log that is a number": pipes("log", '{"message": 5}'),
    "pipes: an unknown level": pipes("log", '{"message": "x", "level": "SHOUT"}'),
    "pipes: a level that is an object": pipes("log", '{"message": "x", "level": {}}'),
    "pipes: an asset check that is not declared": pipes("report_asset_check", '{"check_name": "fine", "passed": true}'),
    "a check that is not declared": b'{"type": "check", "name": "fine", "passed": true}\n',
    "a check that is neither": b'{"type": "check", "name": "declared"}\n',
    "a check twice": 2 * b'{"type": "check", "name": "declared", "passed": true}\n',
    "a check that is passed nearly": b'{"type": "check", "name": "declared", "passed": 1}\n',
    "pipes: a check of another asset": pipes("report_asset_check", '{"asset_key": "other", "check_name": "declared", "passed": true}'),
    "pipes: a check of unknown severity": pipes("report_asset_check", '{"check_name": "declared", "passed": true, "severity": "FATAL"}'),
    "pipes: a check that is passed nearly": pipes("report_asset_check", '{"check_name": "declared", "passed": "true"}'),
    "a name of what is no check": b'{"type": "log", "message": "x", "name": "declared"}\n',
    "pipes: metadata that is a list": pipes("report_asset_materialization", '{"metadata": [1]}'),
    "pipes: metadata that is text": pipes("report_asset_materialization", '{"metadata": "x"}'),
    "pipes: metadata that is a path": pipes("report_asset_materialization", '{"metadata": {"p": {"raw_value": "/etc/shadow", "type": "path"}}}'),
    "pipes: metadata that is a notebook": pipes("report_asset_materialization", '{"metadata": {"p": {"raw_value": "/x", "type": "notebook"}}}'),
    "pipes: metadata that is a script": pipes("report_asset_materialization", '{"metadata": {"p": {"raw_value": "javascript:x", "type": "url"}}}'),
    "pipes: metadata that is a file": pipes("report_asset_materialization", '{"metadata": {"p": {"raw_value": "file:///x", "type": "url"}}}'),
    "pipes: an address that is a number": pipes("report_asset_materialization", '{"metadata": {"p": {"raw_value": 1, "type": "url"}}}'),
    "pipes: another asset": pipes("report_asset_materialization", '{"asset_key": "other/secret", "data_version": "1", "metadata": {}}'),
    "pipes: an asset that is a list": pipes("report_asset_materialization", '{"asset_key": ["mine"], "metadata": {}}'),
    "pipes: output of another stream": pipes("log_external_stream", '{"stream": "stdout", "text": "x", "extras": {}}'),
    "pipes: an unknown parameter": pipes("log", '{"message": "x", "level": "INFO", "foo": 1}'),
    "pipes: an unknown field": b'{"__dagster_pipes_version": "0.1", "method": "log", "params": {"message": "x"}, "asset_key": "y"}\n',
    "opened again and not closed": pipes("opened") + pipes("closed") + pipes("opened"),
    "closed before it was opened": pipes("closed") + pipes("opened"),
    "pipes: metadata that is an asset": pipes("report_asset_materialization", '{"metadata": {"p": {"raw_value": "a/b", "type": "asset"}}}'),
    "pipes: metadata of an odd type": pipes("report_asset_materialization", '{"metadata": {"p": {"raw_value": 1, "type": {}}}}'),
    "pipes: metadata that is too long": pipes("report_asset_materialization", '{"metadata": {"p": "%s"}}' % ("x" * 5000)),
    "pipes: metadata that is NaN": pipes("report_asset_materialization", '{"metadata": {"p": {"raw_value": NaN, "type": "float"}}}'),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    with pytest.raises(MessageViolation) as caught:
        read(HOSTILE[name])
    sentence = caught.value.message
    assert sentence.isprintable(), sentence
    assert len(sentence) < 500


def test_64_mib_without_an_end_are_never_held() -> None:
    """Given in pieces, as a pipe gives it: refused at the first piece past the cap, and not kept until then."""
    parser, fed = MessageParser(CAPS, "mine", ["declared"]), 0
    with pytest.raises(MessageViolation, match="longer than 65536"):
        while fed < 64 << 20:
            parser.feed(b"x" * 65536)
            fed += 65536
    assert fed <= 65536


def test_one_too_many() -> None:
    caps = MessageSettings(max_line_bytes=1000, max_count=3)
    line = b'{"type": "log", "message": "x"}\n'
    assert len(read(line * 3, caps)) == 3
    with pytest.raises(MessageViolation, match="More than 3"):
        read(line * 4, caps)


def test_too_many_within_a_second() -> None:
    clock = [0.0]
    parser = MessageParser(MessageSettings(max_per_s=10), "mine", clock=lambda: clock[0])
    line = b'{"type": "log", "message": "x"}\n'
    for clock[0] in (0.0, 1.5, 2.9):
        assert len(parser.feed(line * 10)) == 10
    with pytest.raises(MessageViolation, match="More than 10 messages within a second"):
        parser.feed(line)


def test_what_is_said_for_people_cannot_move_their_cursor() -> None:
    (message,) = read(b'{"type": "log", "message": "a\\u001b[2Jb\\u0007\\u009b1m\\u202ec\\td\\ne\\r"}\n')
    assert message.message == "a\ufffd[2Jb\ufffd\ufffd1m\ufffdc\td\ne\ufffd"
    (message,) = read(b'{"type": "metadata", "values": {"a": "\\u001b]0;title\\u0007"}}\n')
    assert message.values == {"a": "\ufffd]0;title\ufffd"}
    (message,) = read(pipes("log", '{"message": "\\u001b[31mred"}'))
    assert message.message == "\ufffd[31mred"


def test_printable_keeps_text() -> None:
    assert printable("naïve 解析 💥\n\tx") == "naïve 解析 💥\n\tx"


def test_a_quotation_is_short_and_has_no_control_characters() -> None:
    assert quoted(b"\x1b[2J\xff\n") == r"'\x1b[2J\xff\n'"
    assert len(quoted(b"\x00" * 10**6)) < 400
