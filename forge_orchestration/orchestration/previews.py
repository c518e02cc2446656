"""What an analysis made, seen without leaving the UI: its pictures, and the first rows of its tables.

The files were collected by us, but their content is the analysis' own: a picture is shown only if it is one, and a
cell of a table is shown as text in a table, never as Markdown.
"""

import base64
import csv
import io
import os
import stat
import struct
from pathlib import Path
from typing import Any

import dagster as dg

from forge_orchestration.executions.messages import printable
from forge_orchestration.model.record import ExecutionRecord, OutputFacts
from forge_orchestration.orchestration.materialization import Metadata, record_metadata
from forge_orchestration.units import format_bytes

MAX_PICTURES_BYTES = 512 * 2**10
"""Of all pictures of one materialization: Dagster stores them in its event log and sends them with each look."""

MAX_PICTURE_PIXELS = 25_000_000
MAX_TABLE_BYTES = 64 * 2**10
MAX_TABLE_ROWS = 10
MAX_TABLE_COLUMNS = 12
MAX_CELL_CHARS = 80
_PNG = b"\x89PNG\r\n\x1a\n"


def materialization_metadata(record: ExecutionRecord) -> Metadata:
    """What the record says, and what its outputs look like."""
    return {**record_metadata(record), **output_previews(record)}


def output_previews(record: ExecutionRecord) -> dict[str, dg.MetadataValue[Any]]:
    """A preview by output: `preview/<name>`, or nothing for what cannot be previewed."""
    previews: dict[str, dg.MetadataValue[Any]] = {}
    left = MAX_PICTURES_BYTES
    for output in record.outputs:
        path = Path(record.folder) / "outputs" / output.path
        preview: dg.MetadataValue[Any] | None = None
        if output.name == output.path:  # not declared: there may be thousands
            continue
        if output.path.endswith(".png"):
            preview, used = _picture(path, output, left)
            left -= used
        elif output.path.endswith((".csv", ".tsv")):
            preview = _table(path, "\t" if output.path.endswith(".tsv") else ",")
        if preview is not None:
            previews[f"preview/{output.name}"] = preview
    return previews


def _picture(path: Path, output: OutputFacts, left: int) -> tuple[dg.MetadataValue[Any], int]:
    if output.bytes > left:
        return dg.MetadataValue.text(f"{format_bytes(output.bytes)}, too large to be shown here: {path}"), 0
    data = _beginning(path, left)
    if not is_png(data):
        return dg.MetadataValue.text(f"Not shown, because it is no PNG picture of reasonable size: {path}"), 0
    return dg.MetadataValue.md(f"![picture](data:image/png;base64,{base64.b64encode(data).decode()})"), len(data)


def is_png(data: bytes) -> bool:
    """Whether `data` begins as a PNG file does, and says that it has a size that a browser can take."""
    if len(data) < 24 or not data.startswith(_PNG) or data[12:16] != b"IHDR":
        return False
    width, height = struct.unpack(">II", data[16:24])
    return bool(0 < width * height <= MAX_PICTURE_PIXELS)


def _table(path: Path, delimiter: str) -> dg.MetadataValue[Any] | None:
    text = _beginning(path, MAX_TABLE_BYTES).decode("utf-8", "backslashreplace")
    try:
        rows = []
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            rows.append([printable(cell)[:MAX_CELL_CHARS] for cell in row[:MAX_TABLE_COLUMNS]])
            if len(rows) > MAX_TABLE_ROWS:
                break
    except csv.Error:
        return None
    if len(rows) < 2 or not rows[0]:
        return None
    header = [name if name and rows[0].count(name) == 1 else f"{name}#{place}" for place, name in enumerate(rows[0])]
    records = [dg.TableRecord(dict(zip(header, row + [""] * (len(header) - len(row)), strict=False))) for row in rows[1:]]
    return dg.MetadataValue.table(records, dg.TableSchema([dg.TableColumn(name, "string") for name in header]))


def _beginning(path: Path, count: int) -> bytes:
    """The first bytes of a plain file, or nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with open(fd, "rb") as file:
        return file.read(count) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
