"""`forge executions list|show|logs`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time

from forge_orchestration.cli.show import print_record, print_table
from forge_orchestration.cli.untrusted import UntrustedOutput
from forge_orchestration.errors import ForgeError, SpecError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executions.logs import LogFollower
from forge_orchestration.executions.store import Store
from forge_orchestration.model.reasons import Status
from forge_orchestration.settings import Settings, load_settings, make_home


def list_executions(arguments: argparse.Namespace) -> int:
    """The newest executions."""
    if arguments.status is not None and arguments.status not in list(Status):
        raise SpecError(f"'{arguments.status}' is no status.", f"They are: {', '.join(Status)}.")
    if arguments.limit < 1:
        raise SpecError(f"--limit is {arguments.limit}; it must be at least 1.")
    settings = load_settings()
    # the index has every unfinished one as queued
    unfinished = arguments.status is not None and not Status(arguments.status).is_final
    limit, status = (sys.maxsize, Status.QUEUED) if unfinished else (arguments.limit, arguments.status)
    rows = _store(settings).list(limit=limit, status=status, analysis=arguments.analysis)
    for row in rows:
        if not Status(str(row["status"])).is_final:  # the index hears of an execution's begin and end; its record knows more
            with contextlib.suppress(ForgeError):
                record = folder_of(str(row["execution_id"]), settings).read_record()
                row.update(
                    status=record.status, end_reason=record.end_reason, started_at=record.started_at, ended_at=record.ended_at
                )
    if unfinished:
        rows = [row for row in rows if row["status"] == arguments.status][: arguments.limit]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    shown = [
        {
            "execution": row["execution_id"], "analysis": row["analysis"], "runtime": row["runtime"], "status": row["status"],
            "reason": row["end_reason"], "seconds": _seconds(row),
        }
        for row in rows
    ]  # fmt: skip
    print_table(shown)
    return 0


def show_execution(arguments: argparse.Namespace) -> int:
    """One record."""
    record = folder_of(arguments.execution, load_settings()).read_record()
    if arguments.json:
        print(record.to_json())
    else:
        print_record(record)
    return 0


def show_logs(arguments: argparse.Namespace) -> int:
    """What an execution printed, to its end with `--follow`."""
    folder = folder_of(arguments.execution, load_settings())
    folder.read_record()  # says so if there is none
    wanted = ("stdout", "stderr") if arguments.stream == "all" else (arguments.stream,)
    followers = {stream: LogFollower(folder.messages if stream == "messages" else folder.log(stream)) for stream in wanted}
    err = UntrustedOutput(sys.stderr)
    out = UntrustedOutput(sys.stdout)
    while True:
        ended = folder.read_record().status.is_final  # asked before the look: what was written until then is seen
        for stream, follower in followers.items():
            (err if stream == "stderr" and arguments.stream == "all" else out).write(follower.new_bytes())
        if ended or not arguments.follow:
            return 0
        time.sleep(0.1)


def pin_execution(arguments: argparse.Namespace) -> int:
    """`forge executions pin`."""
    from forge_orchestration.operations.retention import pin

    folder = folder_of(arguments.execution, load_settings())
    pin(folder, "by hand")
    print(f"{folder.id} is kept")
    return 0


def unpin_execution(arguments: argparse.Namespace) -> int:
    """`forge executions unpin`."""
    from forge_orchestration.operations.retention import unpin

    folder = folder_of(arguments.execution, load_settings())
    unpin(folder)
    print(f"{folder.id} may be removed")
    return 0


def folder_of(execution: str, settings: Settings) -> ExecutionFolder:
    """The folder of the execution with this id, or of the newest, which is called `last`.

    Raises:
        SpecError: It is no id, or there is no execution yet.
    """
    if execution == "last":
        rows = _store(settings).list(limit=1)
        if not rows:
            raise SpecError("There is no execution yet.", "Start one with: forge run ANALYSIS")
        execution = str(rows[0]["execution_id"])
    return ExecutionFolder(settings.executions_dir, execution)


def _store(settings: Settings) -> Store:
    make_home(settings)
    return Store(settings.store_path)


def _seconds(row: dict[str, object]) -> str:
    start, end = row["started_at"], row["ended_at"]
    return f"{end - start:.2f}" if isinstance(start, float) and isinstance(end, float) else "-"
