"""The system call filter: what no analysis needs and every escape wants.

A list of refusals, not of permissions: numba, R, Java and what comes after them must keep working. Each refused call waits
until the supervisor has counted it (see `violations`) and fails with EPERM, so a program that asks for one politely goes on.
If nobody is there to count it, it fails with ENOSYS.
"""

from __future__ import annotations

import errno
import functools
import os
from types import ModuleType
from typing import cast

from forge_orchestration.errors import HostError

_CLONE_NEW_ANY = 0x7E020000 | 0x00000080  # every CLONE_NEW* flag: mnt, cgroup, uts, ipc, user, pid, net, and time
_NAMESPACE_FLAGS = tuple(1 << bit for bit in range(32) if _CLONE_NEW_ANY & (1 << bit) and bit != 7)
_CLONE_PARENT = 0x8000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_RLIMIT_CORE = 4
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2
_FS_IOC_RESVSP, _FS_IOC_RESVSP64, _FS_IOC_ZERO_RANGE = 0x40305828, 0x4030582A, 0x40305839
_F_SETLEASE, _F_NOTIFY, _F_SETDELEG = 1024, 1026, 1040
_SECCOMP_SET_MODE_FILTER = 1
_PR_SET_SECCOMP, _PR_SCHED_CORE = 22, 62
_SOL_SOCKET = 1
_SO_ATTACH = (26, 50, 51, 52)  # FILTER, BPF, REUSEPORT_CBPF, REUSEPORT_EBPF
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_PROTOCOLS = (0, 6, 17)  # the family's own choice, TCP, UDP
_ODD_KINDS = (4, 5, 6, 10)  # rdm, seqpacket, dccp, packet
_AF_ALLOWED = (_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK)

REFUSED = {
    "namespaces": ("unshare", "setns"),
    "mounts": (
        "mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount",
        "fspick", "mount_setattr", "swapon", "swapoff", "quotactl", "quotactl_fd",
    ),
    "other processes": ("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"),
    "keyrings": ("keyctl", "add_key", "request_key"),
    "kernel programs": ("bpf", "perf_event_open", "userfaultfd", "io_setup", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    "the machine": (
        "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "iopl", "ioperm",
        "settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "syslog", "acct", "sethostname", "setdomainname",
        "vhangup", "lookup_dcookie", "nfsservctl", "modify_ldt", "uselib",
    ),
    # a process with a short time slice is not interrupted for a neighbour's: see `precedence`
    "scheduling": ("sched_setattr", "sched_setscheduler", "sched_setparam"),
    "files by handle": ("open_by_handle_at", "name_to_handle_at", "fanotify_init"),
}  # fmt: skip


_IN_PART = ("clone", "fcntl", "ioctl", "prctl", "seccomp", "setsockopt", "socket", "socketpair")
# what libseccomp has no name for yet; these numbers are the same on every architecture
NEWER = {467: "open_tree_attr"}


@functools.cache
def binding() -> ModuleType:
    """`pyseccomp`, without the two programs that it runs to find libraries whose names are known: 6 of the 8 ms that it takes.

    Raises:
        ImportError, OSError, RuntimeError: It is not installed, or libseccomp is not.
    """
    import ctypes.util

    known = {"c": "libc.so.6", "seccomp": "libseccomp.so.2"}
    find = ctypes.util.find_library
    ctypes.util.find_library = lambda name: known.get(name) or find(name)
    try:
        import pyseccomp
    finally:
        ctypes.util.find_library = find
    return cast(ModuleType, pyseccomp)


@functools.cache
def filter_program() -> bytes:
    """The filter as compiled BPF. Compiled once a process (about a millisecond).

    Raises:
        HostError: libseccomp is not installed, or does not know this processor.
    """
    try:
        pyseccomp = binding()
    except (ImportError, OSError, RuntimeError) as error:
        raise HostError(f"libseccomp cannot be loaded: {error}.", "Install it: sudo apt-get install libseccomp2") from error
    # a system call of another architecture (32 bit, x32) ends the process: the numbers below would mean other calls there
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    refuse = pyseccomp.NOTIFY
    for calls in REFUSED.values():
        for call in calls:
            _refuse(pyseccomp, rules, refuse, call)
    for number in NEWER:
        rules.add_rule(refuse, number)
    for flag in _NAMESPACE_FLAGS:
        rules.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    # a sibling of the caller would be a child of a process outside, which does not wait for it
    rules.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_PARENT, _CLONE_PARENT))
    # clone3 hides its flags in memory, where a filter cannot look: ENOSYS makes the C library use clone
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for request in (_TIOCSTI, _TIOCLINUX):
        rules.add_rule(refuse, "ioctl", _is(pyseccomp, 1, request))
    # the kernel looks at the lower half of a family only, a comparison at all of it: what is above the last one is refused whole
    rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.GT, max(_AF_ALLOWED)))
    for family in range(max(_AF_ALLOWED)):
        if family not in _AF_ALLOWED:
            rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
        if family != _AF_UNIX:  # no other kind of pair does what a pipe does not
            rules.add_rule(refuse, "socketpair", pyseccomp.Arg(0, pyseccomp.EQ, family))
    rules.add_rule(refuse, "socketpair", pyseccomp.Arg(0, pyseccomp.GE, max(_AF_ALLOWED)))
    # listing the interfaces of its own empty network needs NETLINK_ROUTE (0); nothing needs the other netlink families
    rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.EQ, _AF_NETLINK), pyseccomp.Arg(2, pyseccomp.NE, 0))
    # a kernel loads the module of a protocol for whoever asks for it (SCTP, DCCP …), and those have a history of holes
    for family in (_AF_INET, _AF_INET6):
        one = pyseccomp.Arg(0, pyseccomp.EQ, family)
        rules.add_rule(refuse, "socket", one, pyseccomp.Arg(2, pyseccomp.GT, max(_PROTOCOLS)))
        for protocol in range(max(_PROTOCOLS)):
            if protocol not in _PROTOCOLS:
                rules.add_rule(refuse, "socket", one, pyseccomp.Arg(2, pyseccomp.EQ, protocol))
        for kind in _ODD_KINDS:  # of these, protocol 0 is one of them
            rules.add_rule(refuse, "socket", one, pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xF, kind))
    # room that no limit on a file's size knows of: programs take EOPNOTSUPP for a file system that cannot, and go on without it
    both = _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE
    kept = pyseccomp.Arg(1, pyseccomp.MASKED_EQ, both, _FALLOC_KEEP_SIZE)
    rules.add_rule(pyseccomp.ERRNO(errno.EOPNOTSUPP), "fallocate", kept)
    for request in (_FS_IOC_RESVSP, _FS_IOC_RESVSP64, _FS_IOC_ZERO_RANGE):
        rules.add_rule(pyseccomp.ERRNO(errno.EOPNOTSUPP), "ioctl", _is(pyseccomp, 1, request))
    # programs in the kernel are compiled into a stock of the host's, which no limit counts: when it is empty no sandbox can begin.
    # A filter can also have each call written to the host's log.
    rules.add_rule(refuse, "seccomp", _is(pyseccomp, 0, _SECCOMP_SET_MODE_FILTER))
    for option in _SO_ATTACH:
        rules.add_rule(refuse, "setsockopt", _is(pyseccomp, 1, _SOL_SOCKET), _is(pyseccomp, 2, option))
    # the second would keep a processor's other thread idle, on nobody's account
    for option in (_PR_SET_SECCOMP, _PR_SCHED_CORE):
        rules.add_rule(refuse, "prctl", _is(pyseccomp, 0, option))
    # a lease keeps the host from writing to an input of its own for as long as it likes
    for command in (_F_SETLEASE, _F_NOTIFY, _F_SETDELEG):
        rules.add_rule(refuse, "fcntl", _is(pyseccomp, 1, command))
    # a limit of 0 would let the host's core handler have a core (see `entry`): setting it says that it was done, and does nothing
    pretend = pyseccomp.ERRNO(0)
    rules.add_rule(pretend, "setrlimit", _is(pyseccomp, 0, _RLIMIT_CORE))
    rules.add_rule(pretend, "prlimit64", _is(pyseccomp, 1, _RLIMIT_CORE), pyseccomp.Arg(2, pyseccomp.NE, 0))
    with os.fdopen(os.memfd_create("forge-seccomp"), "wb") as file:
        rules.export_bpf(file)
        file.flush()
        return os.pread(file.fileno(), 1 << 20, 0)


def _is(pyseccomp: ModuleType, argument: int, value: int) -> object:
    """That an argument is `value` in its lower half, which is all that the kernel looks at."""
    return pyseccomp.Arg(argument, pyseccomp.MASKED_EQ, 0xFFFFFFFF, value)


def _refuse(pyseccomp: object, rules: object, action: object, call: str) -> None:
    try:
        rules.add_rule(action, call)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError) as error:
        # a call that this processor does not have cannot be made either; one that libseccomp is too old to know could be
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call) < 0:  # type: ignore[attr-defined]
            return
        raise HostError(f"The system call filter cannot refuse '{call}': {error}.") from error


@functools.cache
def refused_names() -> dict[int, str]:
    """Name by number of every system call of which some or all uses are refused, on this processor."""
    pyseccomp = binding()
    names = [*(call for calls in REFUSED.values() for call in calls), *_IN_PART]
    numbers = {pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name): name for name in names}
    return {number: name for number, name in numbers.items() if number >= 0} | NEWER
