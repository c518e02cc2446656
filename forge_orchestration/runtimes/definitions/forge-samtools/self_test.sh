# Shows that this runtime works: reads are sorted, indexed and counted, and the one variant that they show is called.
set -eu
expect() { [ "$1" = "$2" ] || { echo "$3: '$1' instead of '$2'" >&2; exit 1; }; }
cd "$TMPDIR"

sequence=ACGTTGCAAGCTTAGGCATCGATTACGGCTAAGTCCATGCATGCCTAGGTA
other=ACGTTGCAAGCTTAGGCATCGATTACTGCTAAGTCCATGCATGCCTAGGTA   # the 27th base is T instead of G
printf '>chr1\n%s\n' $sequence > genome.fa
{
    printf '@HD\tVN:1.6\n@SQ\tSN:chr1\tLN:51\n'
    for read in 1 2 3 4 5 6 7 8 9 10 11 12; do printf 'read%d\t0\tchr1\t1\t60\t51M\t*\t0\t0\t%s\t*\n' $read $other; done
} | samtools sort -o reads.bam -
samtools index reads.bam
expect "$(samtools view -c reads.bam chr1:20-30)" 12 "reads are miscounted"
bcftools mpileup -Ou -f genome.fa reads.bam 2>/dev/null | bcftools call -mv --ploidy 1 -Ov | bgzip > calls.vcf.gz
tabix -p vcf calls.vcf.gz
expect "$(tabix calls.vcf.gz chr1:1-51 | cut -f 1,2,4,5)" "$(printf 'chr1\t27\tG\tT')" "another variant is called"
echo "$(samtools --version | head -n 1), $(bcftools --version | head -n 1): reads are sorted, indexed and counted, a variant is called"
