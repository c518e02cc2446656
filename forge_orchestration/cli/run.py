"""`forge run`, `forge exec` and `forge analyses`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import msgspec

from forge_orchestration.cli.untrusted import UntrustedOutput
from forge_orchestration.engine import Engine
from forge_orchestration.errors import CanceledError, SpecError
from forge_orchestration.model.messages import Message
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.operations.retry_with_more import run_with_more
from forge_orchestration.settings import Settings, load_settings

UNPUBLISHED = 7
"""Exit status where the analysis has succeeded, and its result could not be published."""
_LIMITS = ("memory", "cpus", "pids", "wall_time", "grace", "scratch", "log", "files", "open_files")


def run_analysis(arguments: argparse.Namespace) -> int:
    """`forge run`."""
    settings = load_settings()
    specs = asked_specs(
        arguments,
        settings,
        executor=arguments.executor,
        limits=_limits(arguments),
        priority=arguments.priority,
        cache=arguments.cache,
    )
    return _run(Engine(settings), specs, arguments, summary=True)


def asked_specs(arguments: argparse.Namespace, settings: Settings, **more: Any) -> list[AnalysisSpec]:
    """What is asked for: an analysis, one of its stages, or all of them in their order.

    Raises:
        ForgeError: It cannot be had; the sentence says why.
    """
    from forge_orchestration.analyses import load_definition, specs_from_definition

    return specs_from_definition(
        load_definition(arguments.analysis, settings), settings, stage=arguments.stage, runtime=arguments.runtime,
        partition=arguments.partition, threads=arguments.threads, seed=arguments.seed, params=pairs(arguments.param, "--param"),
        inputs=pairs(arguments.input, "--input"), asked_by="command line", **more,
    )  # fmt: skip


def run_command(arguments: argparse.Namespace) -> int:
    """`forge exec`."""
    from forge_orchestration.api import command_spec

    settings = load_settings()
    spec = command_spec(
        arguments.words, settings, runtime=arguments.runtime, executor=arguments.executor, inputs=pairs(arguments.input, "--input"),
        outputs=arguments.output, limits=_limits(arguments), env=pairs(arguments.env, "--env"), threads=arguments.threads,
        seed=arguments.seed, priority=arguments.priority, cache=arguments.cache, asked_by="command line",
    )  # fmt: skip
    return _run(Engine(settings), [spec], arguments, summary=False)


def resume_execution(arguments: argparse.Namespace) -> int:
    """`forge resume`."""
    from forge_orchestration.cli.executions import folder_of
    from forge_orchestration.model.limits import updated_limits
    from forge_orchestration.operations.again import resumed

    settings = load_settings()
    record = folder_of(arguments.execution, settings).read_record()
    spec = resumed(record, settings)
    spec = msgspec.structs.replace(spec, limits=updated_limits(spec.limits, _limits(arguments), "the command line"))
    return _run(Engine(settings), [spec], arguments, summary=spec.folder is not None)


def list_analyses(arguments: argparse.Namespace) -> int:
    """`forge analyses`."""
    from forge_orchestration.analyses import load_definitions
    from forge_orchestration.cli.show import print_table

    definitions = load_definitions(load_settings())
    rows = [
        {"analysis": one.name, "group": one.group, "runtime": one.runtime, "description": one.description}
        for one in definitions.values()
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows)
    return 0


def _run(engine: Engine, specs: list[AnalysisSpec], arguments: argparse.Namespace, *, summary: bool) -> int:
    from forge_orchestration.operations.stages import run_stages

    with canceled_by_signals() as (cancel, interrupted):

        def run(spec: AnalysisSpec) -> ExecutionRecord:
            one = functools.partial(
                run_with_more, engine, spec, cancel=cancel, wait_for_room=not arguments.no_wait, told=_tell_retry
            )
            return _run_shown(one, as_json=arguments.json, summary=summary)

        try:
            records = run_stages(specs, run)
        except CanceledError:
            if interrupted.is_set():
                raise KeyboardInterrupt from None
            raise
    engine.close()
    if arguments.json and len(specs) == 1:
        print(records[0].to_json())
    elif arguments.json:
        print(msgspec.json.format(msgspec.json.encode(records), indent=2).decode())
    reason = records[-1].end_reason
    assert reason is not None
    if interrupted.is_set() and reason == "canceled":
        return 130
    return reason.exit_status or (UNPUBLISHED if any(record.unpublished for record in records) else 0)


@contextlib.contextmanager
def canceled_by_signals() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Events that are set by Ctrl-C and whatever else asks this process to end, and by Ctrl-C alone."""
    cancel, interrupted = threading.Event(), threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            interrupted.set()
        cancel.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield cancel, interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell_retry(record: ExecutionRecord, sentence: str) -> None:
    print(f"forge: {record.message} {sentence} [{record.execution_id}]", file=sys.stderr, flush=True)


def _run_shown(run: Callable[..., ExecutionRecord], *, as_json: bool, summary: bool) -> ExecutionRecord:
    if as_json:
        record = run()
    else:
        terminal = _Terminal(progress=summary)
        record = run(listener=terminal)
        terminal.finish()
        if summary:
            from forge_orchestration.cli.show import print_record

            print_record(record)
        elif not record.succeeded:
            print(f"forge: {record.message} [{record.execution_id}]", file=sys.stderr)
        for one in record.unpublished:
            print(f"forge: publication '{one.name}': {one.error} [{record.execution_id}]", file=sys.stderr)
        if not summary and record.guard is not None:
            for finding in record.guard.findings:
                print(f"forge: {finding.verdict}: {finding.target}: {finding.what} [{record.execution_id}]", file=sys.stderr)
    return record


class _Terminal:
    """Passes an execution's output to ours as it comes; progress goes to stderr, in place on a terminal, in lines elsewhere."""

    def __init__(self, *, progress: bool) -> None:
        self._progress = progress
        self._in_place = sys.stderr.isatty()
        self._open_line = False
        self._told_of = ""
        self._out = {"stdout": UntrustedOutput(sys.stdout), "stderr": UntrustedOutput(sys.stderr)}

    def on_started(self, record: ExecutionRecord) -> None:
        if self._progress and record.execution_id != self._told_of:
            self._told_of = record.execution_id
            runtime = record.runtime.name if record.runtime else "?"
            print(f"{record.analysis}: execution {record.execution_id} in {runtime}", file=sys.stderr)
        if record.status == "queued" and record.message and (self._progress or self._in_place):
            print(record.message, file=sys.stderr, flush=True)

    def on_log(self, stream: str, data: bytes) -> None:
        self._close_line()
        self._out[stream].write(data)

    def on_message(self, message: Message) -> None:
        if not self._progress:
            return
        if message.type == "progress":
            share = f"{message.fraction:4.0%}  " if message.fraction is not None else ""
            if self._in_place:
                print(f"\r\033[K{share}{message.message}", end="", file=sys.stderr, flush=True)
                self._open_line = True
            else:
                print(f"{share}{message.message}", file=sys.stderr, flush=True)
        elif message.type == "log":
            self._close_line()
            print(f"{message.level}: {message.message}", file=sys.stderr, flush=True)
        elif message.type == "check":
            from forge_orchestration.cli.show import check_sentence  # a command that reports none need not wait for it

            self._close_line()
            print(f"check {check_sentence(message.name, bool(message.passed), message.message)}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Nothing more comes."""
        self._close_line()

    def _close_line(self) -> None:
        if self._open_line:
            print(file=sys.stderr)
            self._open_line = False


def _limits(arguments: argparse.Namespace) -> dict[str, object]:
    return {name: getattr(arguments, name) for name in _LIMITS if getattr(arguments, name) is not None}


def pairs(words: list[str], option: str) -> dict[str, str]:
    """What an option that may be repeated says: value by name.

    Raises:
        SpecError: A word has no `=`, or a name comes twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise SpecError(f"{option} is {word!r}.", f"Write it as {option} NAME=VALUE.")
        if name in found:
            raise SpecError(f"{option} names '{name}' twice.")
        found[name] = value
    return found
