"""Changes the device nodes that it shares with the host: a `/dev/null` that nobody may open any more stops everything."""

import os
import stat

from evidence import attempt, done, ioctl, syscall

for name in ("null", "zero", "full", "random", "urandom", "tty"):
    path = f"/dev/{name}"
    attempt(f"chmod {name}", os.chmod, path, 0o666)  # as it is: were it allowed, nothing would break
    attempt(f"chown {name}", os.chown, path, os.getuid(), os.getgid())
    attempt(f"remove {name}", os.unlink, path)
    attempt(f"rename {name}", os.rename, path, f"/dev/{name}.old")
    attempt(f"times {name}", os.utime, path, (0, 0))
attempt("take the entropy", ioctl, "/dev/urandom", 0x5204, 0, os.O_WRONLY)  # RNDZAPENTCNT
attempt("new device", os.mknod, "/dev/harm", stat.S_IFCHR | 0o666, os.makedev(1, 1))
attempt("new device in shm", os.mknod, "/dev/shm/harm", stat.S_IFCHR | 0o666, os.makedev(1, 1))
attempt("attribute", syscall, "setxattr", b"/dev/null", b"user.harm", b"x", 1, 0)
done()
