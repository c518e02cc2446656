"""How an attack says what it tried and what came of it: a line of JSON an attempt, which the test outside reads.

    from evidence import TARGETS, attempt, done, read

    attempt("the secret", read, TARGETS["secret"])
    done()

An attack judges nothing. It says what each call returned or with which error it was refused, and at its very end that it
got there: a program that broke before its attempt is no evidence. Standard library only, and no pretence: the calls are real.
"""

import ctypes
import errno
import fcntl
import json
import os
import socket

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
NUMBERS = {
    "ioctl": 16, "shmget": 29, "shmat": 30, "shmctl": 31, "socket": 41, "socketpair": 53, "setsockopt": 54, "clone": 56, "semget": 64, "msgget": 68,
    "msgsnd": 69, "ptrace": 101, "syslog": 103, "capset": 126, "modify_ldt": 154, "pivot_root": 155, "prctl": 157, "chroot": 161,
    "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "sethostname": 170, "setdomainname": 171, "iopl": 172,
    "init_module": 175, "delete_module": 176, "setxattr": 188, "fsetxattr": 190, "io_setup": 206, "timer_create": 222,
    "clock_settime": 227, "mq_open": 240, "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "ioprio_set": 251,
    "unshare": 272, "perf_event_open": 298, "prlimit64": 302, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "finit_module": 313, "seccomp": 317,
    "renameat2": 316, "kexec_file_load": 320, "bpf": 321, "fallocate": 285, "userfaultfd": 323, "io_uring_setup": 425, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435,
    "pidfd_getfd": 438, "mount_setattr": 442, "memfd_secret": 447, "open_tree_attr": 467,
}  # fmt: skip

with open(os.environ["FORGE_PARAMS"], "rb") as _params:
    TARGETS = json.load(_params)
_stream = 1
_attempts = 0


def report_on(descriptor):
    """Say it there from now on; for attacks that need standard output for themselves."""
    global _stream
    _stream = descriptor


def say(**facts):
    """One line, in one write."""
    os.write(_stream, json.dumps(facts).encode() + b"\n")


def attempt(what, call, *arguments, **more):
    """Make the call, say what came of it, and return its value (None if it was refused)."""
    global _attempts
    _attempts += 1
    try:
        value = call(*arguments, **more)
    except OSError as error:
        say(attempt=what, error=errno.errorcode.get(error.errno) or type(error).__name__)
        return None
    say(attempt=what, error=None, got=repr(value)[:300])
    return value


def done():
    """The attack has tried everything that it meant to."""
    say(done=_attempts)


def syscall(name, *arguments):
    """A raw system call, by its name or its number on x86_64.

    Raises:
        OSError: The kernel, or what stands before it, refused it.
    """
    number = NUMBERS[name] if isinstance(name, str) else name
    ctypes.set_errno(0)
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read(path, count=200):
    """The beginning of a file, or the names in a folder."""
    if os.path.isdir(path):
        return sorted(os.listdir(path))[:20]
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, count)
    finally:
        os.close(fd)


def write(path, data=b"harm", flags=0):
    """Write to a file that is there, or with `os.O_CREAT` to a new one."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | flags, 0o666)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def connect(family, address, kind=socket.SOCK_STREAM):
    """Connect, send a word, and return the answer."""
    with socket.socket(family, kind) as one:
        one.settimeout(2)
        one.connect(address)
        one.send(b"harm")
        return one.recv(100)


def ioctl(path, request, argument=0, flags=os.O_RDONLY):
    """An ioctl on what lies at `path`."""
    fd = os.open(path, flags | os.O_NONBLOCK)
    try:
        return fcntl.ioctl(fd, request, argument)
    finally:
        os.close(fd)


def in_child(call, *arguments):
    """Make the call in a child; returns how that ended: its exit status, or minus the signal.

    Raises:
        OSError: As in the child.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 0
        try:
            call(*arguments)
        except OSError as error:
            os.write(writing, str(error.errno).encode())
            status = 1
        finally:
            os._exit(status)
    os.close(writing)
    said = os.read(reading, 16)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if said:
        raise OSError(int(said), os.strerror(int(said)))
    return os.waitstatus_to_exitcode(status)
