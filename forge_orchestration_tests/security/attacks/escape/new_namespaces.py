"""Makes namespaces, first of all a user namespace: inside one it would have every capability, and the whole kernel to attack."""

import ctypes
import os
import signal
import struct
import subprocess

from evidence import attempt, done, syscall

FLAGS = {
    "user": 0x10000000, "mount": 0x00020000, "pid": 0x20000000, "network": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000,
    "cgroup": 0x02000000, "time": 0x00000080,
}  # fmt: skip


def clone(name, *arguments):
    child = syscall(name, *arguments)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


for name, flag in FLAGS.items():
    attempt(f"unshare {name}", syscall, "unshare", flag)
    attempt(f"unshare user and {name}", syscall, "unshare", flag | FLAGS["user"])
    if name != "time":  # for clone this bit is part of a signal's number
        attempt(f"clone {name}", clone, "clone", flag | signal.SIGCHLD, 0, 0, 0, 0)
        attempt(f"clone user and {name}", clone, "clone", flag | FLAGS["user"] | signal.SIGCHLD, 0, 0, 0, 0)
    request = ctypes.create_string_buffer(struct.pack("QQQQQQQQ", flag, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 88)
    attempt(f"clone3 {name}", clone, "clone3", request, 88)
attempt("high bits", syscall, "unshare", FLAGS["user"] | 1 << 40)


def tool(*words):
    done = subprocess.run(words, capture_output=True)
    if done.returncode != 0:
        raise PermissionError(1, done.stderr.decode())


for words in (("unshare", "--user", "--map-root-user", "true"), ("bwrap", "--unshare-user", "--ro-bind", "/", "/", "true")):
    attempt(f"tool {words[0]}", tool, *words)
done()
