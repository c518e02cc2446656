"""Changes an input that everybody may write on the host, with every call that changes a file."""

import mmap
import os

from evidence import attempt, done, syscall, write

path = "/forge/inputs/data"
attempt("write", write, path)
attempt("append", write, path, b"harm", os.O_APPEND)
attempt("truncating open", os.open, path, os.O_RDONLY | os.O_TRUNC)
attempt("truncate", os.truncate, path, 0)
attempt("chmod", os.chmod, path, 0o666)
attempt("chown", os.chown, path, os.getuid(), os.getgid())
attempt("times", os.utime, path)
attempt("remove", os.unlink, path)
attempt("rename", os.rename, path, "/forge/inputs/other")
attempt("replace", os.rename, "/forge/params.json", path)
attempt("attribute", syscall, "setxattr", path.encode(), b"user.harm", b"x", 1, 0)
fd = os.open(path, os.O_RDONLY)
attempt("write to a descriptor", os.write, fd, b"harm")
attempt("ftruncate", os.ftruncate, fd, 0)
attempt("fallocate", os.posix_fallocate, fd, 0, 1)
attempt("fchmod", os.fchmod, fd, 0o666)
attempt("fchown", os.fchown, fd, os.getuid(), os.getgid())
attempt("shared writable mapping", mmap.mmap, fd, 4, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
shared = mmap.mmap(fd, 4, mmap.MAP_SHARED, mmap.PROT_READ)
attempt("attribute of a descriptor", syscall, "fsetxattr", fd, b"user.harm", b"x", 1, 0)
done()
