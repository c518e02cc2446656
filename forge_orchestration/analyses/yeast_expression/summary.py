"""Say which genes of one chromosome are expressed most, and draw where on it the reads lie.

RPKM is the number of reads in a gene for each thousand bases of its exons and each million of mapped reads in the whole library, so
that genes of all lengths and chromosomes can be compared.

A plain script: it reads ``$FORGE_INPUTS/reads`` (BAM), ``library`` and ``counts`` (tables), the parameters at ``$FORGE_PARAMS`` and
the chromosome's name, ``$FORGE_PARTITION``, and writes to ``$FORGE_OUTPUTS``.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

NAMED = 12
"""Genes that the picture names."""
COLOURS = {"+": "#0072B2", "-": "#D55E00"}


def say(**message: object) -> None:
    """Tell whoever watches."""
    with open(os.environ["FORGE_MESSAGES"], "a") as file:
        file.write(json.dumps(message) + "\n")


def rows(path: Path, delimiter: str) -> list[dict[str, str]]:
    """A table's rows, each by the names of its columns."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def by_expression(counts: list[dict[str, str]], mapped: int) -> list[dict[str, str]]:
    """The genes that have reads, the most expressed first, with their RPKM."""

    def rpkm(gene: dict[str, str]) -> float:
        return int(gene["reads"]) * 1e9 / int(gene["length"]) / mapped

    expressed = [gene for gene in counts if int(gene["reads"])]
    return [{**gene, "rpkm": f"{rpkm(gene):.3f}"} for gene in sorted(expressed, key=lambda gene: (-rpkm(gene), gene["gene"]))]


def starts_by_bin(path: Path, chromosome: str, bases: int) -> dict[str, list[int]]:
    """How many alignments begin in each bin of the chromosome, by strand."""
    import pysam

    with pysam.AlignmentFile(str(path)) as reads:
        starts = {strand: [0] * -(-reads.get_reference_length(chromosome) // bases) for strand in COLOURS}
        for read in reads:
            starts["-" if read.is_reverse else "+"][read.reference_start // bases] += 1
    return starts


def draw(genes: list[dict[str, str]], starts: dict[str, list[int]], bases: int, chromosome: str, path: Path) -> None:
    """Reads along the chromosome, those of the strand - downwards, and the genes that are expressed most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    along, most = figure.subplots(2, height_ratios=[1, 1.2])
    edges = [place * bases / 1000 for place in range(len(starts["+"]) + 1)]
    for strand, sign in (("+", 1), ("-", -1)):
        along.stairs([sign * count for count in starts[strand]], edges, fill=True, color=COLOURS[strand], label=f"strand {strand}")
    along.axhline(0, color="#777777", linewidth=0.5)
    along.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    along.set(xlabel="thousand bases", ylabel=f"reads in {bases:,} bases", title=f"Chromosome {chromosome}", xmargin=0)
    along.legend(loc="upper right", frameon=False, ncols=2)
    best = genes[NAMED - 1 :: -1]
    most.barh(
        range(len(best)), [float(gene["rpkm"]) for gene in best], color=[COLOURS.get(gene["strand"], "#777777") for gene in best]
    )
    most.set_yticks(range(len(best)), [gene["name"] or gene["gene"] for gene in best])
    most.set(xlabel="RPKM", title="The genes that are expressed most" if best else "No gene has a read")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def main() -> None:
    """Run the analysis."""
    inputs, outputs = Path(os.environ["FORGE_INPUTS"]), Path(os.environ["FORGE_OUTPUTS"])
    os.environ["MPLCONFIGDIR"] = os.environ["TMPDIR"]
    chromosome = os.environ["FORGE_PARTITION"]
    bases = json.loads(Path(os.environ["FORGE_PARAMS"]).read_text())["bin"]
    counts = rows(inputs / "counts", ",")
    mapped = sum(int(row["mapped"]) for row in rows(inputs / "library", "\t"))

    genes = by_expression(counts, mapped)
    with open(outputs / "genes.csv", "w", newline="") as file:
        table = csv.DictWriter(file, [*counts[0], "rpkm"], lineterminator="\n")
        table.writeheader()
        table.writerows(genes)
    say(type="progress", fraction=0.4, message=f"{len(genes)} of {len(counts)} genes have reads")
    draw(genes, starts_by_bin(inputs / "reads", chromosome, bases), bases, chromosome, outputs / "chromosome.png")

    best = [gene["name"] or gene["gene"] for gene in genes[:NAMED]]
    summary = {
        "chromosome": chromosome, "genes": len(counts), "genes_with_reads": len(genes),
        "reads_in_genes": sum(int(gene["reads"]) for gene in genes), "mapped_in_library": mapped, "most_expressed": best,
    }  # fmt: skip
    (outputs / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    say(type="metadata", values={**summary, "most_expressed": ", ".join(best)})
    say(type="progress", fraction=1.0, message="done")
    for gene in genes[:NAMED]:
        print(f"{gene['rpkm']:>12}  {gene['gene']:12}  {gene['name']:10}  {gene['reads']:>6} reads")


if __name__ == "__main__":
    main()
