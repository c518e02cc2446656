"""Results that go to a database or a folder: checked and written by control, after they were collected, each execution's once.

    publications/<execution id>   there as long as something of an execution may have to be published still

A result is published under the execution that made it: one that is reused is not published twice.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import msgspec

from forge_orchestration.errors import CanceledError, ForgeError, SpecError, one_line
from forge_orchestration.executions.folder import ExecutionFolder, sync_folder
from forge_orchestration.executions.inputs import DigestCache, digest_of_file
from forge_orchestration.model.publication import Publication, PublishedFacts
from forge_orchestration.model.record import ExecutionRecord, OutputFacts
from forge_orchestration.settings import Settings
from forge_orchestration.units import format_bytes

_PLACEHOLDER = re.compile(r"\{(execution_id|partition)\}")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0


def check_targets(publications: Mapping[str, Publication], settings: Settings) -> None:
    """Refuse what the deployment does not allow, before anything runs.

    Raises:
        SpecError: Names the publication.
    """
    for name, one in publications.items():
        place, _, rest = one.target.partition(".") if one.table else one.target.partition("/")
        if one.path and place not in settings.publication.folders:
            known = ", ".join(settings.publication.folders) or "none"
            raise SpecError(
                f"Publication '{name}' goes to the folder '{place[:80]}', which this deployment does not have.",
                f"Its folders: {known} ([publication] folders in settings.toml).",
            )
        if one.table and place not in settings.databases:
            known = ", ".join(settings.databases) or "none"
            raise SpecError(
                f"Publication '{name}' goes to the database '{place[:80]}', which this deployment does not have.",
                f"Its databases: {known} ([databases] in settings.toml).",
            )
        if one.table and not any(fnmatch.fnmatchcase(rest, pattern) for pattern in settings.databases[place].tables):
            raise SpecError(
                f"Publication '{name}' goes to table '{rest}' of database '{place}', to which nothing may be added.",
                f"See 'tables' under [databases.{place}] in settings.toml.",
            )


def mark(execution_id: str, settings: Settings) -> None:
    """Remember that something of an execution is to be published when it has succeeded."""
    settings.publications_dir.mkdir(mode=0o700, exist_ok=True)
    (settings.publications_dir / execution_id).touch()


def unmark(execution_id: str, settings: Settings) -> None:
    """Nothing of it is to be published any more."""
    (settings.publications_dir / execution_id).unlink(missing_ok=True)


def marked(settings: Settings) -> list[str]:
    """Ids of executions of which something may have to be published still."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(settings.publications_dir))
    return []


def publish(
    record: ExecutionRecord, publications: Mapping[str, Publication], settings: Settings, cache: DigestCache,
    cancel: threading.Event | None = None, *, force: bool = False,
    patient: bool = True,
) -> list[PublishedFacts]:  # fmt: skip
    """Publish what an execution that has succeeded has made; what is published already stays as it is.

    Args:
        force: Also if the execution is suspect.
        patient: Whether a database that does not answer is tried again for a while.

    Returns:
        What has become of each, errors included: one that cannot be published keeps none of the others from it.
    """
    retry_s = settings.publication.retry_s if patient else 0.0
    done = {(one.name, one.target): one for one in record.published if one.at is not None}
    return [
        done.get((name, one.target)) or _publish(name, one, record, settings, cache, cancel, force, retry_s)
        for name, one in publications.items()
    ]


def _publish(
    name: str, publication: Publication, record: ExecutionRecord, settings: Settings, cache: DigestCache,
    cancel: threading.Event | None, force: bool, retry_s: float,
) -> PublishedFacts:  # fmt: skip
    maker = record.cache.source_execution_id or record.execution_id
    folder = ExecutionFolder(settings.executions_dir, record.execution_id)
    facts = PublishedFacts(name=name, output=publication.output, target=publication.target, execution_id=maker)
    try:
        if record.suspect and not force:
            raise SpecError(
                "The execution is suspect: nothing of it is published.",
                f"Look at its record, then: forge publish --force {record.execution_id}",
            )
        check_targets({name: publication}, settings)
        outputs = [one for one in record.outputs if one.name == publication.output]
        if len(outputs) != 1:
            raise SpecError(f"Output '{publication.output}' is {len(outputs)} files, and one can be published.", "Name one file.")
        output = outputs[0]
        path = folder.outputs / output.path
        if digest_of_file(path, cache)[0] != output.sha256:
            raise SpecError(f"Output '{output.path}' is no longer what was collected: it is not published.")
        rows = None
        if publication.table:
            rows = _patiently(lambda: _load(name, publication, record, maker, path, output, settings), retry_s, cancel)
        else:
            _place(path, publication, record, maker, settings)
    except Exception as error:  # of libraries that read what an analysis has written: whatever it is, nothing was published
        transient = isinstance(error, ForgeError) and (error.transient or isinstance(error, CanceledError))
        kind = "" if isinstance(error, (ForgeError, OSError)) else f"{type(error).__name__}: "
        return msgspec.structs.replace(facts, error=one_line(f"{kind}{error}"), transient=transient)
    return msgspec.structs.replace(facts, rows=rows, sha256=output.sha256, at=time.time())


def _patiently(load: Callable[[], int], retry_s: float, cancel: threading.Event | None) -> int:
    """What `load` returns, tried again for a while as long as the database does not answer."""
    until, wait_s = time.monotonic() + retry_s, _FIRST_WAIT_S
    while True:
        try:
            return load()
        except ForgeError as error:
            left = until - time.monotonic()
            if not error.transient or left <= 0:
                raise
        if cancel is not None and cancel.wait(min(wait_s, left)):
            raise CanceledError("The publication was canceled.", "Publish it later: forge publish")
        if cancel is None:
            time.sleep(min(wait_s, left))
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _load(
    name: str, publication: Publication, record: ExecutionRecord, maker: str, path: Path, output: OutputFacts, settings: Settings
) -> int:  # fmt: skip
    from forge_orchestration.executions.frames import checked_frames  # only who publishes waits for pandas
    from forge_orchestration.executions.tables import Database

    if output.bytes > settings.publication.max_bytes:
        raise SpecError(
            f"Output '{output.path}' has {format_bytes(output.bytes)}, and a table takes {format_bytes(settings.publication.max_bytes)} at most.",
            "See [publication] max in settings.toml.",
        )
    place, _, table = publication.table.partition(".")
    frames = checked_frames(path, f"Output '{output.path}'", publication.columns, publication.unique, settings.publication.max_rows)
    return Database(place, settings.databases[place]).add(
        table, publication.columns, publication.unique, frames, execution_id=maker, publication=name, analysis=record.analysis
    )


def _place(path: Path, publication: Publication, record: ExecutionRecord, maker: str, settings: Settings) -> None:
    """Put the file in its place, whole: who reads there at any moment finds the old one or this one."""
    place, _, rest = publication.path.partition("/")
    values = {"execution_id": maker, "partition": quote(record.partition or "", safe="")}
    folder = settings.publication.folders[place]
    target = folder / _PLACEHOLDER.sub(lambda found: values[found[1]], rest)
    if not folder.is_dir():
        raise SpecError(
            f"The folder {folder}, which '{place}' stands for, is not there.", "See [publication] folders in settings.toml."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    if not Path(os.path.realpath(target.parent)).is_relative_to(os.path.realpath(folder)):
        raise SpecError(f"{target} leads out of the folder {folder} through a link.")
    temporary = target.with_name(f".{target.name}.{record.execution_id}.{os.getpid()}")
    try:
        with open(path, "rb") as source, open(temporary, "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        os.rename(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
