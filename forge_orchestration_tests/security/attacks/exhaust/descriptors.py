"""Opens as many files as it can in as many processes, and keeps them: the host's table is one for all."""

import os
import resource

from evidence import attempt, done, say

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
opened = 0
table = os.open("/proc/sys/fs/file-nr", os.O_RDONLY)


def open_all():
    global opened
    while True:
        os.open("/dev/null", os.O_RDONLY)
        opened += 1


attempt("one process", open_all)
say(opened=opened, limit=hard, used_on_host=os.read(table, 100).split()[0].decode())
done()
