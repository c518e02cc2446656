"""Attacks on whoever reads what comes out: outputs that are none, names that lie, forged messages, logs that steer a terminal."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import subprocess
from pathlib import Path

import msgspec
import pytest

import forge_orchestration
from forge_orchestration.model.messages import Message
from forge_orchestration_tests.conftest import Forge
from forge_orchestration_tests.security.arena import AS_ROOT, LIMITS, Arena

EXEC = ("exec", *(word for name, value in LIMITS.items() for word in (f"--{name.replace('_', '-')}", value)))


# -- outputs -----------------------------------------------------------------------------------------------------------


def test_links(arena: Arena) -> None:
    outcome = arena.run("deceive/links")
    assert outcome.facts["made"] == 12 and outcome.finished, outcome
    outcome.assert_ended("output_rejected")
    assert outcome.record.outputs == [] and len(outcome.record.rejected_outputs) == 12
    assert {one.why for one in outcome.record.rejected_outputs} == {"it is a link, not a file"}
    assert os.listdir(Path(outcome.record.folder, "outputs")) == []


def test_special_files(arena: Arena) -> None:
    outcome = arena.run("deceive/special_files", outputs={"result": "result.csv"})
    made = {what for what, error in outcome.errors().items() if error is None}
    assert outcome.finished and {"fifo", "socket"} <= made and not {"zero", "disk"} & made, outcome
    outcome.assert_ended("output_rejected")
    assert "result.csv" in outcome.record.message
    assert len(outcome.record.rejected_outputs) == len(made) and outcome.record.outputs == []


KEPT = (
    "-rf", "--help", "$(id)", "`id`", "a;b", "a'b\"c", "=cmd|' C calc'!A0", "...", "..hidden", "record.json", "a b", " ", "é", "é",
    "日本", "<img src=x onerror=alert(1)>", "%00", "*", "[abc]", "~", "x" * 255, "\\x1b[2J", "😀",
)  # fmt: skip
LYING = (
    "\x1b[2Jhonest.csv",
    "\x1b]0;harm\x07",
    "two\nlines",
    "honest.csv\r",
    "tab\there",
    "\x7f",
    "\x9b2J",
    "\u202egpj.exe",
    "a\u200bb",
    "\ufeffx",
    "line\u2028end",
    "hex:fffe2e637376",
    "hex:c0ae",
    "hex:eda080",
    "\u2066x",
)


def test_names(arena: Arena) -> None:
    outcome = arena.run("deceive/names", names=[*KEPT, *LYING])
    assert outcome.finished and set(outcome.errors().values()) == {None} and len(outcome.attempts) == len(KEPT) + len(LYING), (
        outcome
    )
    assert {one.path for one in outcome.record.outputs} == set(KEPT)
    for one in outcome.record.outputs:
        assert Path(outcome.record.folder, "outputs", one.path).read_text() == one.path
    assert len(outcome.record.rejected_outputs) == len(LYING)
    for rejected in outcome.record.rejected_outputs:
        assert rejected.path.isprintable() and rejected.why in ("its name is not UTF-8", "its name has control characters")
    outcome.assert_ended("output_rejected")


def test_names_on_a_terminal(arena: Arena, forge: Forge) -> None:
    outcome = arena.run("deceive/names", names=list(LYING))
    shown = on_a_terminal(forge, "executions", "show", outcome.record.execution_id)
    assert b"Not kept" in shown and b"honest.csv" in shown
    assert_harmless(shown)


def test_long_names(arena: Arena) -> None:
    outcome = arena.run("deceive/long_names", limits={"scratch": "32MiB"})
    assert isinstance(outcome.facts["made"], int) and outcome.facts["made"] > 500, outcome
    assert outcome.record.end_reason == "output_rejected", outcome.record.end_reason
    size = Path(outcome.record.folder, "record.json").stat().st_size
    assert size < 1 << 20 and len(outcome.record.message) < 1000, (size, len(outcome.record.message))


def test_too_many(arena: Arena) -> None:
    outcome = arena.run("deceive/many_outputs", limits={"scratch": "512MiB"}, count=10_050)
    assert outcome.facts["made"] == 10_050 and outcome.finished, outcome
    assert len(outcome.record.outputs) == 10_000 and len(outcome.record.rejected_outputs) == 50
    outcome.assert_ended("output_rejected")
    assert "more than 10000 files" in outcome.record.message


def test_one_file_under_many_names(arena: Arena) -> None:
    outcome = arena.run("deceive/many_links_to_one", limits={"scratch": "64MiB"})
    assert outcome.finished, outcome
    kept = sum(path.stat().st_blocks * 512 for path in Path(outcome.record.folder, "outputs").iterdir())
    assert kept <= 64 << 20 and len(outcome.record.outputs) <= 64
    outcome.assert_ended("output_rejected")
    assert "larger than the scratch limit" in outcome.record.message


def test_a_privileged_program(arena: Arena) -> None:
    outcome = arena.run("deceive/privileged_output")
    # the kernel may refuse the set-gid bit to who is not in the group
    assert outcome.finished and str(outcome.facts["modes"]).count("777") == 2, outcome
    for path in Path(outcome.record.folder, "outputs").rglob("*"):
        assert path.stat().st_mode & 0o7022 == 0 and path.stat().st_uid == os.geteuid(), path
        assert path.is_dir() or path.stat().st_mode & 0o111 == 0, path
    outcome.assert_ended("completed")


def test_swapped_all_the_time(arena: Arena) -> None:
    """That the token did not come out, which `Arena.run` looks for, is the point."""
    outcome = arena.run("deceive/swapped")
    assert outcome.facts["swapped"] == 1000 and outcome.finished, outcome
    for path in Path(outcome.record.folder, "outputs").rglob("*"):
        assert path.is_dir() or path.read_text() == "honest", path
    outcome.assert_ended("output_rejected")


def test_closed_outputs(arena: Arena) -> None:
    outcome = arena.run("deceive/closed_outputs")
    assert outcome.finished and set(outcome.errors().values()) == {None} and len(outcome.attempts) == 5, outcome
    assert {one.path for one in outcome.record.outputs} == {"file", "folder/inner"}
    outcome.assert_ended("completed")


@pytest.mark.parametrize(
    "form",
    ["nothing", "folder", "link", "link to another output", "fifo", "too large", "other case", "trailing space", "in a folder"],
)
def test_something_else_than_declared(arena: Arena, form: str) -> None:
    outcome = arena.run("deceive/declared", form=form, outputs={"table": "table.csv"})
    assert outcome.facts.get("form") == form or not AS_ROOT, outcome
    if form == "too large" and not AS_ROOT:
        assert outcome.record.end_reason in ("nonzero_exit", "scratch", "signaled"), outcome
        return
    outcome.assert_ended("output_rejected")
    assert "table.csv" in outcome.record.message
    assert "table.csv" not in {one.path for one in outcome.record.outputs} and "table" not in {
        one.name for one in outcome.record.outputs
    }


# -- messages ----------------------------------------------------------------------------------------------------------


def pipes(method: str, **params: object) -> bytes:
    """A line as `dagster_pipes` writes it."""
    return json.dumps({"__dagster_pipes_version": "0.1", "method": method, "params": params}).encode() + b"\n"


def metadata(kind: str, value: object) -> bytes:
    """What claims to describe its asset."""
    return pipes("report_asset_materialization", data_version="forged", metadata={"a": {"raw_value": value, "type": kind}})


BROKEN: dict[str, bytes] = {
    "no JSON": b"no json\n",
    "an array": b"[]\n",
    "a number": b"1\n",
    "nothing": b"null\n",
    "a string": b'"log"\n',
    "NUL": b"\0\n",
    "two in a line": b'{"type": "log"} {"type": "log"}\n',
    "half a message": b'{"type": "log"',
    "an open string": b'{"type": "log\n',
    "unknown type": b'{"type": "materialization", "asset_key": "other"}\n',
    "no type": b'{"message": "x"}\n',
    "unknown field": b'{"type": "log", "message": "x", "execution_id": "other"}\n',
    "type twice": b'{"type": "log", "type": "harm"}\n',
    "unknown level": b'{"type": "log", "level": "harm", "message": "x"}\n',
    "fraction of 7": b'{"type": "progress", "fraction": 7}\n',
    "negative fraction": b'{"type": "progress", "fraction": -1}\n',
    "fraction as text": b'{"type": "progress", "fraction": "1"}\n',
    "not a number": b'{"type": "metadata", "values": {"a": NaN}}\n',
    "infinite": b'{"type": "metadata", "values": {"a": 1e999}}\n',
    "deep": b'{"type": "metadata", "values": ' + b"[" * 30_000 + b"]" * 30_000 + b"}\n",
    "deep pipes": pipes("report_custom_message", payload=0).replace(b": 0}", b": " + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    "a number of 60,000 digits": b'{"type": "metadata", "values": {"a": ' + b"9" * 60_000 + b"}}\n",
    "values in values": b'{"type": "metadata", "values": {"a": {"b": 1}}}\n',
    "too many values": b'{"type": "metadata", "values": {' + b", ".join(b'"%d": 1' % n for n in range(300)) + b"}}\n",
    "a long name": b'{"type": "metadata", "values": {"' + b"n" * 200 + b'": 1}}\n',
    "a name that moves the cursor": b'{"type": "metadata", "values": {"\\u001b[2J": 1}}\n',
    "a long text": b'{"type": "log", "message": "' + b"x" * 5000 + b'"}\n',
    "a long line": b"x" * 70_000 + b"\n",
    "not UTF-8": b'{"type": "log", "message": "\xff\xfe"}\n',
    "UTF-16": '{"type": "log", "message": "x"}\n'.encode("utf-16"),
    "half a character": b'{"type": "log", "message": "\\ud800"}\n',
    "opened, never closed": b'{"type": "opened"}\n',
    "opened by pipes, never closed": pipes("opened"),
    "an asset check": pipes("report_asset_check", asset_key="other", check_name="x", passed=True, severity="ERROR", metadata={}),
    "unknown method": pipes("report_harm"),
    "method as a list": pipes("log").replace(b'"log"', b'["log"]'),
    "params as text": b'{"__dagster_pipes_version": "0.1", "method": "log", "params": "x"}\n',
    "text as a number": pipes("log", message=1, level="INFO"),
    "metadata as text": pipes("report_asset_materialization", metadata="x"),
    "a path": metadata("path", "/etc/shadow"),
    "an address": metadata("url", "javascript:alert(1)"),
    "a result of another asset": pipes("report_asset_materialization", asset_key="other/asset", metadata={}),
    "output of its worker": pipes("log_external_stream", stream="stdout", text="forged", extras={}),
    "closed before it was opened": b'{"type": "closed"}\n{"type": "opened"}\n{"type": "log", "message": "x"}\n',
    "a notebook": metadata("notebook", "/x"),
    "another asset": metadata("asset", "other"),
    "another run": metadata("dagster_run", "other"),
    "a table": metadata("table", {"records": []}),
    "another job": metadata("job", "other"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_messages(arena: Arena, name: str) -> None:
    outcome = arena.run("deceive/messages", data=base64.b64encode(BROKEN[name]).decode(), times=1)
    assert outcome.attempts, outcome
    outcome.assert_ended("output_rejected")
    assert "message" in outcome.record.message.lower() and outcome.record.metadata == {}, outcome


def test_a_message_of_64_mib(arena: Arena) -> None:
    outcome = arena.run(
        "deceive/messages", data=base64.b64encode(b"x" * (1 << 16)).decode(), times=1 << 10, limits={"memory": "256MiB"}
    )
    assert outcome.attempts and not outcome.finished, outcome
    outcome.assert_ended("output_rejected")
    assert "longer than 65536 bytes" in outcome.record.message


# what may be said, and what of it is kept: as what the analysis claims, and nowhere else
FORGED: dict[str, tuple[bytes, dict[str, object]]] = {
    "a result of its own": (metadata("text", "forged"), {"a": "forged"}),
    "its own record": (
        b'{"type": "metadata", "values": {"end_reason": "canceled", "exit_code": 7, "execution_id": "other"}}\n',
        {"end_reason": "canceled", "exit_code": 7, "execution_id": "other"},
    ),
    "a link for a reader": (
        metadata("md", "[x](javascript:alert(1)) ![x](http://192.0.2.1/)"),
        {"a": "[x](javascript:alert(1)) ![x](http://192.0.2.1/)"},
    ),
    "a value that moves the cursor": (b'{"type": "metadata", "values": {"a": "\\u001b[2J\\u009b"}}\n', {"a": "\ufffd[2J\ufffd"}),
    "a text that moves the cursor": (b'{"type": "log", "message": "\\u001b]0;harm\\u0007\\u202e"}\n', {}),
    "a large number": (b'{"type": "metadata", "values": {"a": 99999999999999999999999999}}\n', {"a": 99999999999999999999999999}),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_messages(arena: Arena, name: str) -> None:
    data, kept = FORGED[name]
    heard: list[dict[str, object]] = []
    outcome = arena.run("deceive/messages", data=base64.b64encode(data).decode(), times=1, on_fact=heard.append)
    record = outcome.record
    assert outcome.finished and heard, outcome
    assert record.metadata == kept and record.exit_code == 0 and record.execution_id != "other", outcome
    outcome.assert_ended("completed")
    text = Path(record.folder, "messages.jsonl").read_text()
    assert all(char.isprintable() or char == "\n" for char in text)
    for line in text.splitlines():
        message = msgspec.json.decode(line, type=Message)
        assert all(char.isprintable() for char in message.message)


# -- logs --------------------------------------------------------------------------------------------------------------

ESCAPES = b"\x1b[2J\x1b[1;1H\x1b]0;harm\x07\x1b]52;c;aGFybQ==\x07\x1b[6n\x1bP$q\x1b\\\x9b2J\x08\x08\x08\r\x0b\x0c\x0e\x00honest\n"


def on_a_terminal(forge: Forge, *arguments: str) -> bytes:
    """What `forge` writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*forge.command, *arguments], env=forge.environment({"TERM": "xterm"}), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while data := os.read(ours, 65_536):
                shown += data
        os.close(ours)
    assert process.returncode is not None
    return shown


def assert_harmless(shown: bytes) -> None:
    """Nothing that a terminal would obey, but ends of lines and colours of ours."""
    text = shown.decode().replace("\r\n", "\n")
    assert all(char.isprintable() or char in "\n\t" for char in text), text


def test_escapes_on_a_terminal(arena: Arena, forge: Forge) -> None:
    outcome = arena.run("deceive/logs", data=base64.b64encode(ESCAPES).decode(), times=1)
    assert outcome.logs["stdout"] == ESCAPES  # kept as they are, and shown as what they are
    outcome.assert_ended("completed")
    shown = on_a_terminal(forge, "executions", "logs", outcome.record.execution_id)
    assert b"honest" in shown
    assert_harmless(shown)


def test_escapes_while_it_runs(arena: Arena, forge: Forge) -> None:
    script = "printf '\\033[2J\\033]0;harm\\007honest\\n'; printf '\\033[2Jhonest too\\n' >&2; exit 3"
    shown = on_a_terminal(forge, *EXEC, "--", "sh", "-c", script)
    assert b"honest" in shown and b"honest too" in shown and b"status 3" in shown
    assert_harmless(shown)


def test_bytes_that_are_no_text(arena: Arena, forge: Forge) -> None:
    data = bytes(range(256)) + b"\xf0\x9f" + b"\xed\xa0\x80" + b"\xc0\xae" + b"\xff" * 100
    outcome = arena.run("deceive/logs", data=base64.b64encode(data).decode(), times=10)
    assert outcome.logs["stdout"] == data * 10 and outcome.finished
    outcome.assert_ended("completed")
    assert_harmless(on_a_terminal(forge, "executions", "logs", outcome.record.execution_id))
    piped = subprocess.run(
        [*forge.command, "executions", "logs", outcome.record.execution_id, "--stream", "stdout"],
        env=forge.environment(),
        capture_output=True,
    )
    assert (piped.returncode, piped.stdout) == (0, data * 10)


def test_a_line_of_64_mib(arena: Arena) -> None:
    outcome = arena.run(
        "deceive/logs", data=base64.b64encode(b"x" * (1 << 16)).decode(), times=1 << 10, limits={"memory": "256MiB"}
    )
    assert outcome.finished, outcome
    log = outcome.record.logs["stdout"]
    assert (log.bytes, log.truncated_bytes) == (1 << 20, 63 << 20)
    outcome.assert_ended("completed")


def test_a_forged_record(arena: Arena, forge: Forge) -> None:
    forged = '{"execution_id": "20260101T000000000-00000000", "analysis": "x", "status": "succeeded", "end_reason": "completed"}'
    done = forge(*EXEC, "--json", "--", "sh", "-c", f"echo '{forged}'; echo '{forged}' >&2; echo 'forge: completed' >&2; exit 3")
    record = json.loads(done.stdout)
    assert record["end_reason"] == "nonzero_exit" and record["exit_code"] == 3 and done.returncode == 1
    assert "completed" not in done.stderr


@pytest.mark.parametrize("status", [1, 2, 3, 10, 11, 124, 125, 126, 127, 128, 130, 137, 139, 143, 159, 192, 193, 255])
def test_exit_status(arena: Arena, status: int) -> None:
    """What ended it is what Forge saw: no status says "memory", "wall_time" or "canceled"."""
    outcome = arena.run("deceive/exit_status", status=status)
    assert outcome.finished, outcome
    outcome.assert_ended("nonzero_exit")
    assert (outcome.record.exit_code, outcome.record.signal) == (status, None)


@pytest.mark.parametrize("number", [1, 2, 9, 11, 15, 31, 64])
def test_ended_by_a_signal(arena: Arena, number: int) -> None:
    """The other half: a signal that ended it is never taken for a status."""
    outcome = arena.run("deceive/exit_status", command=["sh", "-c", f"kill -{number} $$"])
    outcome.assert_ended("signaled")
    assert (outcome.record.exit_code, outcome.record.signal) == (None, number)


def test_who_it_is_in_audit_records(arena: Arena) -> None:
    if not Path("/proc/self/loginuid").exists():
        pytest.skip("this kernel audits nothing")
    outcome = arena.run("deceive/login_uid")
    outcome.assert_refused("EPERM")
    own = int(Path("/proc/self/loginuid").read_text())
    assert outcome.record.isolation is not None
    # whoever started it has logged in, and is that for good; or else it is who it is on this host
    assert own != 2**32 - 1 or outcome.facts["login_uid"] not in (0, 2**32 - 1), outcome
    assert own != 2**32 - 1 or not AS_ROOT or outcome.facts["login_uid"] == outcome.record.isolation.uid, outcome
    outcome.assert_ended("completed")


def test_names_of_processes(arena: Arena) -> None:
    outcome = arena.run("deceive/process_names")
    assert outcome.finished and len(outcome.facts["named"]) == 8 and "bwrap\n" in outcome.facts["named"], outcome  # type: ignore
    outcome.assert_ended("completed")


def test_a_process_whose_name_is_no_text(arena: Arena) -> None:
    """Named so before the supervisor's first look at it."""
    link = os.fsencode(arena.canaries.inputs) + b"/\xff"
    script = 'exec "/forge/inputs/folder/$(printf "\\377")" 0.3'
    os.symlink("/bin/sleep", link)
    try:
        records = [
            forge_orchestration.run(["sh", "-c", script], inputs={"folder": str(arena.canaries.inputs)}, limits=LIMITS)
            for _ in range(3)
        ]
    finally:
        os.unlink(link)
    for record in records:
        arena.look_around(record, 0)
        arena.outcome(record).assert_ended("completed")
