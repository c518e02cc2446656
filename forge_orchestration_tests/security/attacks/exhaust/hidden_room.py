"""Takes room on the disk that is in no file's size: beyond the end of a file, and of one without a name."""

import os

from evidence import attempt, done, say, syscall

KEEP_SIZE = 1
for name in ("named", "unnamed"):
    file = os.open("/forge/scratch/file", os.O_RDWR | os.O_CREAT)
    if name == "unnamed":
        os.unlink("/forge/scratch/file")
    attempt(f"beyond the end of a {name} file", syscall, "fallocate", file, KEEP_SIZE, 0, 300 << 20)
    say(name=name, blocks=os.fstat(file).st_blocks)
done()
