"""The expression of yeast's genes, a chromosome at a time: against the alignments read by hand, and against htseq-count."""

from __future__ import annotations

import collections
import csv
import functools
import gzip
import json
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from forge_orchestration.analyses import SHIPPED, read_definition
from forge_orchestration.model.record import ExecutionRecord, record_from_json
from forge_orchestration_tests.conftest import Forge, copy_runtime, host_packages
from forge_orchestration_tests.integration.dagster_support import REPOSITORY, RUN_S, Deployment, wait_for

pytestmark = pytest.mark.together

NAME = "yeast_expression"
DATA = SHIPPED / NAME / "data"
HTSEQ = Path(__file__).with_name("data") / "yeast_counts.htseq.tsv.gz"
STAGES = ("filter", "count", "summary")
BUILD_S = 900


class Alignment(NamedTuple):
    name: str
    chromosome: str
    start: int  # from 0 on
    end: int
    is_reverse: bool
    differences: int


def alignments(path: Path) -> list[Alignment]:
    """The mapped reads of a BAM, by its format and no library: there are no gaps in them, so each is as long as its sequence."""
    data = gzip.decompress(path.read_bytes())
    assert data[:4] == b"BAM\1"
    (length,) = struct.unpack_from("<i", data, 4)
    at = 8 + length
    (count,) = struct.unpack_from("<i", data, at)
    at += 4
    names = []
    for _ in range(count):
        (length,) = struct.unpack_from("<i", data, at)
        names.append(data[at + 4 : at + 3 + length].decode())
        at += 8 + length
    found = []
    while at < len(data):
        size, chromosome, start, name_length, _, _, operations, flag, bases = struct.unpack_from("<iiiBBHHHi", data, at)
        name = data[at + 36 : at + 35 + name_length].decode()
        tags = data[at + 36 + name_length + 4 * operations + (bases + 1) // 2 + bases : at + 4 + size]
        if not flag & 4:
            differences = re.search(rb"NMC(.)", tags, re.DOTALL)
            assert differences is not None
            found.append(Alignment(name, names[chromosome], start, start + bases, bool(flag & 16), differences[1][0]))
        at += 4 + size
    return found


@functools.cache
def exons(chromosome: str) -> list[tuple[str, str, int, int]]:
    """Gene, strand, start from 0 on and end."""
    with gzip.open(DATA / "genes.gtf.gz", "rt") as file:
        fields = [line.split("\t") for line in file]
    return [
        (one[8].split('"')[1], one[6], int(one[3]) - 1, int(one[4])) for one in fields if (one[0], one[2]) == (chromosome, "exon")
    ]


def by_hand(reads: list[Alignment], chromosome: str) -> tuple[dict[str, int], list[int]]:
    """Reads by gene, and how many lie in one gene, in several and in none: each read is compared with each exon."""
    counts = {gene: 0 for gene, *_ in exons(chromosome)}
    fates = [0, 0, 0]
    for read in reads:
        strand = "-" if read.is_reverse else "+"
        genes = {gene for gene, its, start, end in exons(chromosome) if its == strand and start < read.end and read.start < end}
        fates[0 if len(genes) == 1 else 1 if genes else 2] += 1
        if len(genes) == 1:
            counts[genes.pop()] += 1
    return counts, fates


@pytest.fixture(scope="module")
def forge(forge_home: Path, have_runtime: Callable[[Forge, str], None]) -> Forge:
    forge = Forge(forge_home)
    have_runtime(forge, "forge-genomics")
    return forge


def run(forge: Forge, chromosome: str, *words: str | Path) -> list[ExecutionRecord]:
    """A record a stage."""
    done = forge("run", "--json", NAME, "--partition", chromosome, *words, timeout=RUN_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return [record_from_json(json.dumps(one)) for one in (found if isinstance(found, list) else [found])]


def output(record: ExecutionRecord, name: str) -> Path:
    (path,) = [one.path for one in record.outputs if one.name == name]
    return Path(record.folder, "outputs", path)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.timeout(1200)
def test_one_chromosome_is_as_counted_by_hand(forge: Forge) -> None:
    filtered, counted, summed = run(forge, "VI")
    here = [one for one in alignments(DATA / "reads.bam") if one.chromosome == "VI"]
    expected = [one for one in here if one.differences <= 2]
    assert 0 < len(expected) < len(here), "the filter has something to do"
    assert alignments(output(filtered, "reads")) == expected
    assert filtered.metadata == {"alignments": len(here), "kept": len(expected)}

    counts, fates = by_hand(expected, "VI")
    table = rows(output(counted, "counts"))
    assert {row["gene"]: int(row["reads"]) for row in table} == counts
    assert [int(row["reads"]) for row in rows(output(counted, "fates"))] == fates

    genes = rows(output(summed, "genes"))
    assert {row["gene"] for row in genes} == {gene for gene, count in counts.items() if count}
    mapped = len(alignments(DATA / "reads.bam"))
    (actin,) = [row for row in genes if row["name"] == "ACT1"]
    in_exons = sum(end - start for gene, _, start, end in exons("VI") if gene == actin["gene"])
    assert float(actin["rpkm"]) == pytest.approx(counts[actin["gene"]] / (in_exons / 1e3) / (mapped / 1e6), abs=1e-3)
    assert output(summed, "picture").read_bytes().startswith(b"\x89PNG")
    assert [one.passed for record in (filtered, counted) for one in record.checks] == [True, True]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_reads_on_the_other_strand_are_noticed_and_nothing_is_filtered_again(forge: Forge) -> None:
    run(forge, "VI")
    records = run(forge, "VI", "--param", "strand=antisense")
    assert [one.cache.hit for one in records] == [True, False, False]
    (check,) = records[1].checks
    assert (check.name, check.passed) == ("reads_are_in_genes", False)


@pytest.mark.timeout(1200)
def test_a_replay_is_identical(forge: Forge) -> None:
    for record, outputs in zip(run(forge, "VI"), (3, 2, 3), strict=True):
        done = forge("replay", record.execution_id, timeout=RUN_S)
        assert done.stdout.startswith(f"identical: {outputs} outputs of "), done.stdout + done.stderr
        assert not forge.read_record(done.stdout.rsplit("[", 1)[1].rstrip("]\n")).cache.hit


@pytest.mark.timeout(1200)
def test_genes_that_call_the_chromosome_otherwise_are_a_sentence(forge: Forge, tmp_path: Path) -> None:
    with gzip.open(DATA / "genes.gtf.gz", "rt") as file:
        (tmp_path / "genes.gtf").write_text("".join(f"chr{line}" for line in file))
    done = forge("run", NAME, "--partition", "VI", "--input", f"genes={tmp_path / 'genes.gtf'}", timeout=RUN_S)
    assert done.returncode == 1
    said = forge("executions", "logs", "last", "--stream", "stderr").stdout
    assert said.startswith("There is no exon on 'VI' among the genes, which are on chr2-micron, chrI, chrII, "), said


@pytest.fixture(scope="module")
def samtools_installed() -> None:
    host_packages("samtools", "bcftools", "tabix")


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("samtools_installed")
def test_the_samtools_of_the_distribution_keep_the_same_reads(forge: Forge) -> None:
    built = forge("runtimes", "build", "forge-samtools", timeout=BUILD_S)
    assert built.returncode == 0, built.stderr
    within_pysam = run(forge, "VI")[0]
    (of_the_host,) = run(forge, "VI", "--stage", "filter", "--runtime", "forge-samtools")
    assert of_the_host.runtime is not None and within_pysam.runtime is not None
    assert (of_the_host.runtime.kind, within_pysam.runtime.kind) == ("system", "venv")
    one, other = (gzip.decompress(output(record, "reads").read_bytes()) for record in (within_pysam, of_the_host))
    assert one == other, "header and alignments; compressed they may differ"
    assert of_the_host.metadata == within_pysam.metadata


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, forge: Forge) -> Deployment:
    """With the runtime that is built already, and results of its own."""
    made = Deployment(tmp_path_factory.mktemp("yeast"), reuse=True)
    copy_runtime(forge.home, made.home, "forge-genomics")
    return made


def chromosomes() -> list[str]:
    partitions = read_definition(SHIPPED / NAME).partitions
    assert partitions is not None and len(partitions.keys) == 18  # 16, a plasmid, the mitochondria
    return list(partitions.keys)


def execute_all(deployment: Deployment, config: Path) -> list[dict[str, Any]]:
    """Records of what `dagster job execute` made for all chromosomes."""
    first, *_, last = chromosomes()
    before = {one["execution_id"] for one in deployment.records()}
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    done = subprocess.run(
        [*deployment.job_command(NAME, config), "--tags", json.dumps(tags)],
        cwd=REPOSITORY, env=deployment.environment, capture_output=True, text=True, timeout=4 * RUN_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [one for one in deployment.records() if one["execution_id"] not in before]


@pytest.mark.timeout(1200)
def test_all_chromosomes_are_as_htseq_counts_them_and_are_not_counted_twice(deployment: Deployment, tmp_path: Path) -> None:
    config = tmp_path / "all_reads.yaml"
    config.write_text(f"ops: {{run_{NAME}__filter: {{config: {{params: {{max_differences: 36}}}}}}}}\n")  # reads have 36 bases
    records = execute_all(deployment, config)
    made = {(one["analysis"].removeprefix(f"{NAME}."), one["partition"]): one for one in records}
    assert set(made) == {(stage, key) for stage in STAGES for key in chromosomes()} and len(made) == len(records)
    assert not any(one["cache"]["hit"] for one in records)

    counts, fates = {}, collections.Counter[str]()
    for key in chromosomes():
        folder = Path(made["count", key]["folder"], "outputs")
        counts |= {row["gene"]: int(row["reads"]) for row in rows(folder / "counts.csv")}
        fates.update({row["fate"]: int(row["reads"]) for row in rows(folder / "fates.csv")})
    with gzip.open(HTSEQ, "rt") as file:
        htseq = {name: int(count) for name, count in (line.split() for line in file)}
    expected = {name: count for name, count in htseq.items() if not name.startswith("__")}
    assert len(expected) == 7124 and counts == expected
    assert (fates["in several genes"], fates["in no gene"]) == (htseq["__ambiguous"], htseq["__no_feature"])
    assert fates.total() == len(alignments(DATA / "reads.bam")), "each read is on one chromosome"
    few = {key for key in chromosomes() if not made["filter", key]["checks"][0]["passed"]}
    assert few == {"2-micron", "MT"}

    again = execute_all(deployment, config)
    assert len(again) == len(records) and all(one["cache"]["hit"] for one in again)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_backfill_makes_all_stages_in_one_run(deployment: Deployment) -> None:
    with deployment.dagster_dev() as server:
        answer = server.query(
            """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename
                 ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }""",
            params={"assetSelection": [{"path": [NAME, stage]} for stage in STAGES], "partitionNames": ["VI", "VII", "VIII"]},
        )["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer

        def status() -> str | None:
            found: str = server.query(
                "query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }",
                id=answer["backfillId"],
            )["partitionBackfillOrError"]["status"]
            return found if found.startswith("COMPLETED") or found == "FAILED" else None

        assert wait_for("the backfill", status, 4 * RUN_S) == "COMPLETED_SUCCESS"
        (run,) = server.runs_of("__ASSET_JOB")
    made = [(one["analysis"], one["partition"]) for one in deployment.records() if one["dagster_run_id"] == run["runId"]]
    assert sorted(made) == sorted((f"{NAME}.{stage}", key) for stage in STAGES for key in ("VI", "VII", "VIII"))
