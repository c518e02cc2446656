"""The system call filter: what no analysis needs and every escape wants.

A list of refusals, not of permissions: numba, R, Java and what comes after them must keep working. Each refused call
fails with EPERM (ENOSYS where programs then fall back by themselves), so a program that asks for one politely goes on.
"""

from __future__ import annotations

import errno
import functools
import os

from forge_orchestration.errors import HostError

_CLONE_NEW_ANY = 0x7E020000 | 0x00000080  # every CLONE_NEW* flag: mnt, cgroup, uts, ipc, user, pid, net, and time
_NAMESPACE_FLAGS = tuple(1 << bit for bit in range(32) if _CLONE_NEW_ANY & (1 << bit) and bit != 7)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_NETLINK = 16
_AF_REFUSED = {"AF_PACKET": 17, "AF_ALG": 38, "AF_VSOCK": 40, "AF_XDP": 44, "AF_BLUETOOTH": 31, "AF_TIPC": 30}

REFUSED = {
    "namespaces": ("unshare", "setns"),
    "mounts": (
        "mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount",
        "fspick", "mount_setattr", "swapon", "swapoff", "quotactl", "quotactl_fd",
    ),
    "other processes": ("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"),
    "keyrings": ("keyctl", "add_key", "request_key"),
    "kernel programs": ("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    "the machine": (
        "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "iopl", "ioperm",
        "settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "syslog", "acct", "sethostname", "setdomainname",
        "vhangup", "lookup_dcookie", "nfsservctl",
    ),
    "files by handle": ("open_by_handle_at", "name_to_handle_at", "fanotify_init"),
}  # fmt: skip


@functools.cache
def filter_program() -> bytes:
    """The filter as compiled BPF, ready for `bwrap --seccomp`. Compiled once a process (about a millisecond).

    Raises:
        HostError: libseccomp is not installed, or does not know this processor.
    """
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise HostError(f"libseccomp cannot be loaded: {error}.", "Install it: sudo apt-get install libseccomp2") from error
    # a system call of another architecture (32 bit, x32) ends the process: the numbers below would mean other calls there
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for calls in REFUSED.values():
        for call in calls:
            _refuse(pyseccomp, rules, refuse, call)
    for flag in _NAMESPACE_FLAGS:
        rules.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    # clone3 hides its flags in memory, where a filter cannot look: ENOSYS makes the C library use clone
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for request in (_TIOCSTI, _TIOCLINUX):
        rules.add_rule(refuse, "ioctl", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, request))
    for family in _AF_REFUSED.values():
        rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    # listing the interfaces of its own empty network needs NETLINK_ROUTE (0); nothing needs the other netlink families
    rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.EQ, _AF_NETLINK), pyseccomp.Arg(2, pyseccomp.NE, 0))
    with os.fdopen(os.memfd_create("forge-seccomp"), "wb") as file:
        rules.export_bpf(file)
        file.flush()
        return os.pread(file.fileno(), 1 << 20, 0)


def _refuse(pyseccomp: object, rules: object, action: object, call: str) -> None:
    try:
        rules.add_rule(action, call)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError) as error:
        # a call that this processor does not have cannot be made either; one that libseccomp is too old to know could be
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call) < 0:  # type: ignore[attr-defined]
            return
        raise HostError(f"The system call filter cannot refuse '{call}': {error}.") from error


def filter_descriptor() -> int:
    """A descriptor from which bubblewrap reads the filter; inheritable, the caller closes it."""
    program = filter_program()
    fd = os.memfd_create("forge-seccomp", 0)
    os.write(fd, program)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
