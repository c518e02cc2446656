"""Show that this runtime works: every library is loaded and used, on problems whose answers are known."""

import os
import tempfile
from pathlib import Path


def expect(condition: bool, otherwise: str) -> None:
    """Raise where a check fails; unlike ``assert`` also under ``python -O``."""
    if not condition:
        raise RuntimeError(otherwise)


def check(scratch: Path) -> str:
    """Return a sentence on what was checked; any error is the failure."""
    os.environ["MPLCONFIGDIR"] = str(scratch / "matplotlib")
    import bioframe
    import cyvcf2
    import matplotlib
    import pandas as pd
    import pyBigWig
    import pysam

    matplotlib.use("agg")
    reads = scratch / "reads.bam"
    header = {"HD": {"VN": "1.6", "SO": "coordinate"}, "SQ": [{"SN": "chr1", "LN": 1000}]}
    with pysam.AlignmentFile(reads, "wb", header=header) as file:
        for start in (10, 20, 500):
            read = pysam.AlignedSegment(file.header)
            read.query_name, read.query_sequence, read.flag = f"read{start}", "ACGT", 0
            read.reference_id, read.reference_start, read.mapping_quality = 0, start, 60
            read.cigarstring = "4M"
            file.write(read)
    pysam.index(str(reads))
    with pysam.AlignmentFile(reads) as file:
        expect(file.count("chr1", 0, 100) == 2, "an index of reads finds the wrong ones")
    variants = scratch / "variants.vcf"
    variants.write_text(
        "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=1000>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t7\t.\tA\tG\t50\tPASS\t.\nchr1\t9\t.\tA\tAT\t50\tPASS\t.\n"
    )
    kinds = [variant.var_type for variant in cyvcf2.VCF(str(variants))]
    expect(kinds == ["snp", "indel"], f"variants are read as {kinds}")
    one = pd.DataFrame({"chrom": ["chr1"], "start": [5], "end": [15]})
    other = pd.DataFrame({"chrom": ["chr1", "chr1"], "start": [10, 50], "end": [20, 60]})
    expect(len(bioframe.overlap(one, other, how="inner")) == 1, "intervals overlap where they do not")
    with pyBigWig.open(str(scratch / "signal.bw"), "w") as track:
        track.addHeader([("chr1", 1000)])
        track.addEntries(["chr1"], [0], ends=[10], values=[2.5])
    with pyBigWig.open(str(scratch / "signal.bw")) as track:
        expect(track.stats("chr1", 0, 10) == [2.5], "a signal track comes back as another")
    return "reads are indexed, variants read, intervals overlapped, a signal track written and read"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(check(Path(folder)))
