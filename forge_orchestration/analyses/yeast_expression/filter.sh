# Keeps the alignments on one chromosome that can be trusted, and indexes them.
#
# A plain script: it reads $FORGE_INPUTS/reads and index (BAM, BAI), the parameters at $FORGE_PARAMS and the chromosome's name,
# $FORGE_PARTITION, and writes to $FORGE_OUTPUTS and $FORGE_MESSAGES. samtools is the program of the distribution in the runtime
# forge-samtools, and the one within pysam in forge-genomics.
set -eu
[ -z "${VIRTUAL_ENV:-}" ] || samtools() { python "$FORGE_ANALYSIS/samtools.py" "$@"; }
say() { printf "$@" >> "$FORGE_MESSAGES"; }
param() { sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" "$FORGE_PARAMS"; }

reads=$TMPDIR/reads.bam
ln -s "$FORGE_INPUTS/reads" "$reads"
ln -s "$FORGE_INPUTS/index" "$reads.bai"   # where samtools looks for it
cd "$FORGE_OUTPUTS"
printf 'chromosome\tlength\tmapped\tunmapped\n' > library.tsv
samtools idxstats "$reads" >> library.tsv
before=$(awk -F '\t' '$1 == ENVIRON["FORGE_PARTITION"] { print $3 }' library.tsv)
[ -n "$before" ] || { echo "There is no chromosome '$FORGE_PARTITION' in the reads." >&2; exit 1; }
say '{"type": "progress", "fraction": 0.2, "message": "%d alignments"}\n' "$before"

# 0xB04: not mapped, not primary, failed by the sequencer, a part of another. --no-PG: the header shall not hold how it was called.
samtools view --no-PG -b -o reads.bam -q "$(param min_mapping_quality)" -F 0xB04 \
    -e "!exists([NM]) || [NM] <= $(param max_differences)" "$reads" "$FORGE_PARTITION"
say '{"type": "progress", "fraction": 0.7, "message": "filtered"}\n'
samtools index reads.bam
kept=$(samtools view -c reads.bam)

enough=true
[ "$kept" -ge 100 ] || enough=false
say '{"type": "check", "name": "enough_reads", "passed": %s, "level": "warning", "message": "%d alignments"}\n' $enough "$kept"
say '{"type": "metadata", "values": {"alignments": %d, "kept": %d}}\n' "$before" "$kept"
say '{"type": "progress", "fraction": 1, "message": "done"}\n'
echo "$FORGE_PARTITION: $kept of $before alignments are kept"
