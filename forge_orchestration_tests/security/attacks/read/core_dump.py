"""Makes a program crash so that its memory is written to a file, or handed to a program of the host.

From: a host whose `core_pattern` is a pipe starts that program as root, outside, with whatever the crashed one holds.
"""

import os
import resource
import signal
import struct

from evidence import LIBC, attempt, done, say, syscall

attempt("no limit on core files", syscall, "prlimit64", 0, resource.RLIMIT_CORE, struct.pack("QQ", 2**64 - 1, 2**64 - 1), 0)
attempt("none at all", resource.setrlimit, resource.RLIMIT_CORE, (0, 0))
child = os.fork()
if child == 0:
    LIBC.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
    os.chdir("/forge/scratch")
    os.kill(os.getpid(), signal.SIGSEGV)
_, status = os.waitpid(child, 0)
say(
    signal=os.WTERMSIG(status),
    dumped=os.WCOREDUMP(status),
    files=os.listdir("/forge/scratch"),
    limit=resource.getrlimit(resource.RLIMIT_CORE),
)
done()
