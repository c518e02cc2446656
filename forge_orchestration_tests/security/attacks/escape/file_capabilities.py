"""Gives a program of its own capabilities, in its file and in the set that survives an exec."""

import os
import shutil
import struct
import subprocess

from evidence import attempt, done, say, syscall

copy = "/forge/scratch/sh"
shutil.copy("/bin/sh", copy)
os.chmod(copy, 0o755)
everything = struct.pack("<IIIII", 0x02000001, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
for_a_namespace = struct.pack("<IIIIII", 0x03000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0, os.getuid())
attempt("for the host", syscall, "setxattr", copy.encode(), b"security.capability", everything, len(everything), 0)
attempt("for a namespace", syscall, "setxattr", copy.encode(), b"security.capability", for_a_namespace, len(for_a_namespace), 0)
attempt("trusted", syscall, "setxattr", copy.encode(), b"trusted.harm", b"x", 1, 0)
say(effective=subprocess.run([copy, "-c", "grep CapEff /proc/self/status"], capture_output=True, text=True).stdout.split())
done()
