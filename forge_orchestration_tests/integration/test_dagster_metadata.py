"""What a materialization says: facts as facts, claims as claims, and hostile content as text."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import dagster as dg
import msgspec
import pytest

from forge_orchestration.model.guard import GuardFacts, GuardFinding
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.reasons import EndReason, Status
from forge_orchestration.model.record import Enforced, ExecutionRecord, LogFacts, Measured, OutputFacts, Usage
from forge_orchestration.orchestration.materialization import data_version, record_metadata, stderr_tail
from forge_orchestration.orchestration.previews import MAX_PICTURES_BYTES, output_previews

pytestmark = pytest.mark.together


def png(width: int = 2, height: int = 2, padding: int = 0) -> bytes:
    """A PNG file with a comment of `padding` bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + b"\x80" * width for _ in range(height))) if width * height < 10_000 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"tEXt", b"c" * padding) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture
def record(tmp_path: Path) -> ExecutionRecord:
    (tmp_path / "outputs").mkdir()
    return ExecutionRecord(
        execution_id="20260102T030405-0123456789",
        analysis="it's",
        status=Status.SUCCEEDED,
        end_reason=EndReason.COMPLETED,
        exit_code=0,
        folder=str(tmp_path),
        limits=Limits(memory_bytes=100 * 2**20, wall_time_s=90),
        enforced={
            "memory_bytes": Enforced(value=100 * 2**20, source="memory.max"),
            "cpus": Enforced(value=1, source="cpu.max"),
        },
        usage=Usage(
            wall_s=Measured(value=1.5, source="clock"),
            cpu_user_s=Measured(value=1.0, source="cpu.stat"),
            cpu_system_s=Measured(value=0.25, source="cpu.stat"),
            peak_memory_bytes=Measured(value=3 * 2**20, source="memory.peak"),
        ),
        logs={"stderr": LogFacts(path=str(tmp_path / "stderr.log"))},
    )


def with_outputs(record: ExecutionRecord, **files: bytes) -> ExecutionRecord:
    """The record with declared outputs; `picture_png` is the file `picture.png`, declared as `picture_png`."""
    facts = []
    for name, content in files.items():
        path = name.replace("_", ".")
        Path(record.folder, "outputs", path).write_bytes(content)
        facts.append(OutputFacts(name=name, path=path, sha256="0" * 64, bytes=len(content)))
    return msgspec.structs.replace(record, outputs=facts)


def table_of(value: object) -> list[dg.TableRecord]:
    assert isinstance(value, dg.TableMetadataValue)
    return list(value.records)


def test_usage_is_numbers_that_plot(record: ExecutionRecord) -> None:
    metadata = record_metadata(record)
    assert metadata["usage/wall_s"] == dg.MetadataValue.float(1.5)
    assert metadata["usage/cpu_s"] == dg.MetadataValue.float(1.25)
    assert metadata["usage/peak_memory_mib"] == dg.MetadataValue.float(3.0)
    assert "usage/peak_pids" not in metadata, "nothing measured it, so nothing is claimed"


def test_what_is_guarded_is_a_table_and_a_number_that_plots(record: ExecutionRecord) -> None:
    assert not [name for name in record_metadata(record) if name.startswith("guard")]
    guard = GuardFacts(databases=["lab"], before_at=5.0, after_at=6.0)
    metadata = record_metadata(record.with_guard(guard))
    assert metadata["guard/findings"] == dg.MetadataValue.int(0) and "guard" not in metadata
    assert (metadata["guard/before"], metadata["guard/afterwards"]) == (
        dg.MetadataValue.timestamp(5.0),
        dg.MetadataValue.timestamp(6.0),
    )
    finding = GuardFinding(target="lab", what="it is corrupt", verdict="corrupted")
    metadata = record_metadata(record.with_guard(msgspec.structs.replace(guard, findings=[finding])))
    assert [row.data for row in table_of(metadata["guard"])] == [{"verdict": "corrupted", "target": "lab", "what": "it is corrupt"}]
    lost = msgspec.structs.replace(guard, after_at=None).not_looked_after("the controller was lost")
    metadata = record_metadata(record.with_guard(lost))
    assert metadata["guard/afterwards"] == dg.MetadataValue.text("the controller was lost")


def test_limits_show_what_was_read_back_beside_what_was_asked(record: ExecutionRecord) -> None:
    rows = {row.data["limit"]: row.data for row in table_of(record_metadata(record)["limits"])}
    assert rows["memory"]["asked"] == "100MiB"
    assert rows["memory"]["enforced"] == "100.0 MiB"
    assert rows["memory"]["read from"] == "memory.max"
    assert rows["wall_time"]["asked"] == "90s"
    assert rows["wall_time"]["enforced"] == ""


def test_a_claim_cannot_take_the_place_of_a_fact(record: ExecutionRecord) -> None:
    claims = {"usage/wall_s": 0.0, "clusters": 9, "ok": True, "link": "[x](javascript:alert(1))", "long": "y" * 10_000}
    metadata = record_metadata(msgspec.structs.replace(record, metadata=claims))
    assert metadata["usage/wall_s"] == dg.MetadataValue.float(1.5)
    assert metadata["analysis/usage/wall_s"] == dg.MetadataValue.float(0.0)
    assert metadata["analysis/clusters"] == dg.MetadataValue.int(9)
    assert metadata["analysis/ok"] == dg.MetadataValue.bool(True)
    assert metadata["analysis/link"] == dg.MetadataValue.text("[x](javascript:alert(1))")
    assert len(metadata["analysis/long"].value) < 3000


def test_a_picture_is_shown_inline_if_it_is_one(record: ExecutionRecord) -> None:
    previews = output_previews(
        with_outputs(
            record,
            real_png=png(),
            page_png=b"<html><script>alert(1)</script>",
            bomb_png=png(60_000, 60_000),
            large_png=png(padding=MAX_PICTURES_BYTES),
        )
    )
    assert previews["preview/real_png"].value.startswith("![picture](data:image/png;base64,iVBOR")
    for name in ("page_png", "bomb_png", "large_png"):
        assert isinstance(previews[f"preview/{name}"], dg.TextMetadataValue), name


def test_a_picture_that_became_a_link_is_not_followed(record: ExecutionRecord, tmp_path: Path) -> None:
    described = with_outputs(record, real_png=png())
    target = tmp_path / "secret.png"
    target.write_bytes(png())
    (tmp_path / "outputs/real.png").unlink()
    (tmp_path / "outputs/real.png").symlink_to(target)
    assert isinstance(output_previews(described)["preview/real_png"], dg.TextMetadataValue)


def test_the_first_rows_of_a_table_are_text_in_a_table(record: ExecutionRecord) -> None:
    rows = b"gene,,gene\n" + b'"<img src=x onerror=alert(1)>","a|b\x1b[0m",3,4\n' + b"x,y,z\n" * 1000
    preview = output_previews(with_outputs(record, markers_csv=rows))["preview/markers_csv"]
    assert isinstance(preview, dg.TableMetadataValue)
    assert [column.name for column in preview.schema.columns] == ["gene#0", "#1", "gene#2"]
    assert preview.records[0].data["gene#0"] == "<img src=x onerror=alert(1)>"
    assert "\x1b" not in str(preview.records[0].data["#1"])
    assert len(preview.records) == 10


@pytest.mark.parametrize("content", [b"", b"\n\n", b"only,a,header\n", b'"never closed', b"\xff\xfe\0a\0,\0"])
def test_a_table_that_is_none_has_no_preview_or_a_harmless_one(record: ExecutionRecord, content: bytes) -> None:
    output_previews(with_outputs(record, odd_csv=content))


def test_the_end_of_stderr_means_nothing_as_markdown(record: ExecutionRecord, tmp_path: Path) -> None:
    (tmp_path / "stderr.log").write_bytes(b"x" * 10_000 + b"\n```\n# heading\n<script>\n\x1b[2Jlast\n")
    text = stderr_tail(record)["stderr"].value
    assert all(line.startswith("    ") for line in text.split("\n"))
    assert text.endswith("last")
    assert "\x1b" not in text


def test_the_data_version_follows_the_outputs_and_nothing_else(record: ExecutionRecord) -> None:
    first = with_outputs(record, a_csv=b"1", b_csv=b"2")
    swapped = msgspec.structs.replace(first, outputs=first.outputs[::-1], execution_id="20270102T030405-0123456789")
    changed = msgspec.structs.replace(
        first, outputs=[*first.outputs[:1], msgspec.structs.replace(first.outputs[1], sha256="1" * 64)]
    )
    assert data_version(first) == data_version(swapped)
    assert data_version(first) != data_version(changed)
