"""Count the reads in each gene of one chromosome.

A read is counted for a gene if it overlaps exons of that gene and of no other (the mode `union` of htseq-count). The two reads of
a pair count once, for the genes that either overlaps.

A plain script: it reads ``$FORGE_INPUTS/reads`` (BAM) and ``genes`` (GTF), the parameters at ``$FORGE_PARAMS`` and the
chromosome's name, ``$FORGE_PARTITION``, and writes to ``$FORGE_OUTPUTS``.
"""

from __future__ import annotations

import bisect
import collections
import csv
import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pysam

OTHER = {"+": "-", "-": "+"}
"""The other strand of each."""
FATES = ("in one gene", "in several genes", "in no gene")


class Exon(NamedTuple):
    """Half open, from 0 on; `kind` such as protein_coding."""

    gene: str
    name: str
    kind: str
    strand: str
    start: int
    end: int


def say(**message: object) -> None:
    """Tell whoever watches."""
    with open(os.environ["FORGE_MESSAGES"], "a") as file:
        file.write(json.dumps(message) + "\n")


def exons_of(path: Path, chromosome: str) -> list[Exon]:
    """The exons of the chromosome's genes."""
    with open(path, "rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
    found, others = [], set()
    with gzip.open(path, "rt") if is_compressed else open(path) as lines:
        for line in lines:
            name, source, feature, start, end, _, strand, _, attributes, *_ = [*line.rstrip("\n").split("\t"), *[""] * 8]
            if name != chromosome:
                others.add(name)
            elif feature == "exon":
                about = dict(re.findall(r'(\w+) "([^"]*)"', attributes))
                kind = about.get("gene_biotype", source)
                found.append(Exon(about["gene_id"], about.get("gene_name", ""), kind, strand, int(start) - 1, int(end)))
    if not found:
        known = ", ".join(sorted(one for one in others if not one.startswith("#"))[:20])
        raise SystemExit(f"There is no exon on '{chromosome}' among the genes, which are on {known}.")
    return found


class Genes:
    """Which genes there are at each place of one strand: a set for each piece between two borders of exons."""

    def __init__(self, exons: Iterable[Exon]) -> None:
        exons = list(exons)
        self._borders = sorted({border for exon in exons for border in (exon.start, exon.end)})
        self._at: list[set[str]] = [set() for _ in self._borders]
        for exon in exons:
            for piece in range(bisect.bisect_left(self._borders, exon.start), bisect.bisect_left(self._borders, exon.end)):
                self._at[piece].add(exon.gene)

    def between(self, start: int, end: int) -> set[str]:
        """Those that have an exon there; half open, from 0 on."""
        first = max(bisect.bisect_right(self._borders, start) - 1, 0)
        last = bisect.bisect_left(self._borders, end)
        return set().union(*self._at[first:last]) if last else set()


def genes_of_reads(reads: pysam.AlignmentFile, exons: list[Exon], strand: str) -> Iterator[set[str]]:
    """For each read, or pair of reads, the genes that it overlaps."""
    genes = {one: Genes(exon for exon in exons if strand == "either" or exon.strand == one) for one in OTHER}
    waiting: dict[str, set[str]] = {}
    for read in reads:
        # the second read of a pair runs against the first
        own = "-" if read.is_reverse != (read.is_paired and read.is_read2) else "+"
        there = genes[OTHER[own] if strand == "antisense" else own]
        found = set().union(*(there.between(start, end) for start, end in read.get_blocks()))
        if read.is_paired and not read.mate_is_unmapped and read.reference_id == read.next_reference_id:
            if read.query_name not in waiting:
                waiting[read.query_name] = found
                continue
            found |= waiting.pop(read.query_name)
        yield found
    yield from waiting.values()  # of pairs whose other read was filtered out


def main() -> None:
    """Run the analysis."""
    import pysam

    inputs, outputs = Path(os.environ["FORGE_INPUTS"]), Path(os.environ["FORGE_OUTPUTS"])
    chromosome = os.environ["FORGE_PARTITION"]
    strand = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())["strand"]
    exons = exons_of(inputs / "genes", chromosome)
    of_gene: dict[str, list[Exon]] = collections.defaultdict(list)
    for exon in exons:
        of_gene[exon.gene].append(exon)
    say(type="progress", fraction=0.2, message=f"{len(of_gene)} genes with {len(exons)} exons")

    counts: collections.Counter[str] = collections.Counter()
    fates = collections.Counter(dict.fromkeys(FATES, 0))
    with pysam.AlignmentFile(str(inputs / "reads")) as reads:
        for number, genes in enumerate(genes_of_reads(reads, exons, strand), start=1):
            fates[FATES[0] if len(genes) == 1 else FATES[1] if genes else FATES[2]] += 1
            counts.update(genes if len(genes) == 1 else ())
            if number % 1_000_000 == 0:
                say(type="progress", message=f"{number:,} reads")

    with open(outputs / "counts.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["gene", "name", "kind", "chromosome", "strand", "start", "end", "length", "reads"])
        for gene, its in sorted(of_gene.items(), key=lambda item: (min(exon.start for exon in item[1]), item[0])):
            start, end = min(exon.start for exon in its), max(exon.end for exon in its)
            bases = len(set().union(*(range(exon.start, exon.end) for exon in its)))
            table.writerow([gene, its[0].name, its[0].kind, chromosome, its[0].strand, start + 1, end, bases, counts[gene]])
    with open(outputs / "fates.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("fate", "reads"), *fates.items()])

    share = fates[FATES[0]] / max(fates.total(), 1)
    message = f"{share:.1%} of {fates.total()} reads" if fates.total() else "There are no reads."
    say(type="check", name="reads_are_in_genes", passed=share >= 0.5 or not fates.total(), message=message)
    say(type="metadata", values={"genes": len(of_gene), "genes_with_reads": len(counts), **fates})
    say(type="progress", fraction=1.0, message="done")
    print(f"{chromosome}: {', '.join(f'{number} reads {fate}' for fate, number in fates.items())}")


if __name__ == "__main__":
    main()
