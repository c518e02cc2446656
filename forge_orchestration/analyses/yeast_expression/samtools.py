"""The samtools within pysam, called like the program: ``python samtools.py view -c reads.bam``."""

import sys

import pysam

if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    try:
        # what is caught is caught whole, in memory: a file is written by samtools itself
        said = getattr(pysam, command)(*arguments, catch_stdout="-o" not in arguments)
    except pysam.SamtoolsError as error:
        sys.exit(str(error))
    sys.stdout.write(said or "")
