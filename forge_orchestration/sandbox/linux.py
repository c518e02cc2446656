"""The few kernel calls for which Python has no function: namespaces, mounts, privileges, filters, loop devices, process identity.

Nothing here knows of executions. Errors are `OSError` with the call's name.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import re
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MNT_DETACH, _AT_RECURSIVE = 2, 0x8000
MS_NOSUID, MS_NODEV, MS_NOATIME, MS_REC, MS_PRIVATE = 2, 4, 1024, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 4, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 1 << 3
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _AT_EMPTY_PATH, _AT_FDCWD = 1, 4, 0x1000, -100
_MOUNT_ATTR_IDMAP, _MOUNT_ATTR_READ_ONLY_NOSUID_NODEV = 0x00100000, 1 | 2 | 4
_MADV_POPULATE_WRITE = 23
_RENAME_EXCHANGE = 2
_SCHED_ATTR_BYTES = 48
_NOBODY_YET = 0xFFFFFFFF


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def _check(result: int, call: str, *what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", *what[:1])
    return result


def unshare(flags: int) -> None:
    """Give this process namespaces of its own."""
    _check(_libc.unshare(flags), "unshare")


def unshare_mounts() -> None:
    """Give this process a mount namespace of its own: what it mounts is seen by it and its children, and ends with them."""
    unshare(CLONE_NEWNS)
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")


def enter_namespaces(pidfd: int, flags: int) -> None:
    """Enter namespaces of the process behind `pidfd`, all of them or none; its pid namespace holds for later children only."""
    _check(_libc.setns(pidfd, flags), "setns")


def mount_ext4(device: str, target: Path) -> None:
    """Mount a scratch file system on `device` at `target`, without set-uid programs and devices.

    Nothing on it outlives a crash, so nothing waits for the disk (`barrier=0`), and its tables are not filled ahead of use.
    """
    flags = MS_NOSUID | MS_NODEV | MS_NOATIME
    options = b"barrier=0,noinit_itable"
    _check(_libc.mount(device.encode(), os.fsencode(target), b"ext4", flags, options), "mount", str(target))


def unmount(target: Path, *, lazily: bool = False) -> None:
    """Unmount `target`; `lazily`, with what is mounted beneath it, and also while somebody looks into it."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH if lazily else 0), "umount", str(target))


def unmount_beneath(folder: Path) -> None:
    """Unmount what is mounted at `folder` and beneath it, the last first."""
    for point in reversed(mount_points(folder)):
        unmount(point, lazily=True)


def mount_points(folder: Path) -> list[Path]:
    """Where something is mounted, at `folder` and beneath it, in the order in which that was done."""
    folder = Path(os.path.realpath(folder))  # as the kernel calls it
    points = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        # a blank, a tab, a line's end and a backslash are written as a backslash and three octal digits
        point = Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), line.split(b" ", 5)[4])))
        if point == folder or folder in point.parents:
            points.append(point)
    return points


@contextlib.contextmanager
def user_namespace(uids: tuple[int, int], gids: tuple[int, int]) -> Iterator[int]:
    """A descriptor of a user namespace in which one id stands for another: of users, and of groups, (on the disk, as seen)."""
    told, tell = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            unshare(CLONE_NEWUSER)
            die_with_parent(signal.SIGKILL)
            os.write(tell, b".")
            os.close(tell)
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    fd = -1
    try:
        os.read(told, 1)
        for name, (inside, outside) in (("uid_map", uids), ("gid_map", gids)):
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(f"{inside} {outside} 1")
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        yield fd
    finally:
        os.close(told)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if fd >= 0:
            os.close(fd)


def mount_read_only(source: int, target: Path, namespace: int | None = None) -> None:
    """Mount what the descriptor `source` stands for at `target`, read-only, without set-uid programs and devices.

    Args:
        namespace: A user namespace whose ids the mount shows, if not those on the disk.
    """
    whole = _AT_RECURSIVE if namespace is None else 0  # with what is mounted beneath, as bubblewrap has it
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | whole
    tree = _check(_libc.syscall(_SYS_OPEN_TREE, source, b"", flags), "open_tree")
    try:
        # struct mount_attr: set, clear, propagation, namespace
        mapped = 0 if namespace is None else _MOUNT_ATTR_IDMAP
        attributes = struct.pack("QQQQ", mapped | _MOUNT_ATTR_READ_ONLY_NOSUID_NODEV, 0, 0, namespace or 0)
        _check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | whole, attributes, len(attributes)), "mount_setattr")
        _check(
            _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH),
            "move_mount",
            str(target),
        )
    finally:
        os.close(tree)


def sync_file_system(folder: Path) -> None:
    """Have all that was written to the file system of `folder` on its disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(fd), "syncfs", str(folder))
    finally:
        os.close(fd)


def exchange(first: Path, second: Path) -> None:
    """Let two folders of one file system change places: nobody finds one of them missing.

    Raises:
        OSError: EINVAL where the file system cannot.
    """
    done = _libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE))
    _check(done, "renameat2", str(second))


def attach_loop_device(image_fd: int) -> tuple[str, int]:
    """Attach an open image to a free loop device that detaches itself when its last user is gone.

    Returns:
        The device's path and an open descriptor, which the caller closes once the device is mounted.
    """
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(200):  # another process may take the free one between the two calls
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            path = f"/dev/loop{number}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            # struct loop_config: fd, block size, struct loop_info64 (flags at offset 52), reserved
            info = bytearray(232)
            struct.pack_into("I", info, 52, _LO_FLAGS_AUTOCLEAR)
            config = struct.pack("II", image_fd, 0) + bytes(info) + bytes(64)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                return path, device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device after 200 tries")


def _prctl(*arguments: int) -> int:
    return int(_libc.prctl(*(ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0, 0)[:5])))


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel to send `signal_number` to this process when its parent ends. A change of user id takes that back."""
    _check(_prctl(_PR_SET_PDEATHSIG, signal_number), "prctl")


def be_dumpable() -> None:
    """Let processes of the same user look at this one in `/proc`, which a change of privileges has ended."""
    _check(_prctl(_PR_SET_DUMPABLE, 1), "prctl")


def drop_bounding_set() -> None:
    """Give up every capability for good: no program can bring one back. Needs CAP_SETPCAP."""
    for capability in range(64):
        if _prctl(_PR_CAPBSET_DROP, capability) < 0:
            if ctypes.get_errno() == errno.EINVAL and capability > 0:
                return  # one past the last that this kernel knows
            _check(-1, "prctl")


def drop_capabilities() -> None:
    """Empty the effective, permitted, inheritable and ambient sets, and let no program gain privileges (`no_new_privs`)."""
    _check(_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL), "prctl")
    header, data = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    _check(_libc.capset(header, data), "capset")
    set_no_new_privileges()


def set_no_new_privileges() -> None:
    """Let no program that is executed from now on gain privileges, by a set-user-id bit for example."""
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "prctl")


def join_new_session_keyring() -> None:
    """Leave the session keyring that was inherited for a new, empty one; nothing to do on a kernel without keyrings."""
    if (
        _libc.syscall(_system_call("keyctl"), _KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0) < 0
        and ctypes.get_errno() != errno.ENOSYS
    ):
        _check(-1, "keyctl")


def install_filter(program: bytes) -> int:
    """Put this thread under a seccomp filter; returns the descriptor at which refused calls are announced.

    Args:
        program: Compiled BPF, 8 bytes an instruction.
    """
    described = _SockFprog(len(program) // 8, program)
    call = _libc.syscall(
        _system_call("seccomp"), _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER, ctypes.byref(described)
    )
    return _check(call, "seccomp")


@functools.cache
def _system_call(name: str) -> int:
    from forge_orchestration.sandbox.seccomp import binding

    pyseccomp = binding()
    return int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))


def set_time_slice(nanoseconds: int) -> None:
    """Let this thread, and what it starts, compute so long before it is another's turn; a kernel older than 6.12 ignores it."""
    # struct sched_attr: size, policy (normal), flags, nice, priority, runtime, deadline, period
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack("=IIQiIQQQ", _SCHED_ATTR_BYTES, 0, 0, nice, 0, nanoseconds, 0, 0)
    _check(_libc.syscall(_system_call("sched_setattr"), 0, attributes, 0), "sched_setattr")


def time_slice(pid: int) -> int:
    """The time slice of process `pid` in nanoseconds; 0 on a kernel that does not know of any."""
    attributes = ctypes.create_string_buffer(_SCHED_ATTR_BYTES)
    _check(_libc.syscall(_system_call("sched_getattr"), pid, attributes, _SCHED_ATTR_BYTES, 0), "sched_getattr", str(pid))
    return int(struct.unpack("=IIQiIQQQ", attributes.raw)[5])


def own_memory() -> None:
    """Copy now what this forked process shares with its parent, rather than page by page when something waits for it.

    Nothing depends on it; a kernel older than 5.14 does not know how.
    """
    with open("/proc/self/maps") as maps:
        lines = maps.read().splitlines()
    for line in lines:
        fields = line.split()
        if fields[1] == "rw-p" and (len(fields) == 5 or fields[5] in ("[heap]", "[stack]")):
            start, end = (int(one, 16) for one in fields[0].split("-"))
            _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_POPULATE_WRITE)


def warm_up() -> None:
    """Look up once, before forking, what every child will need."""
    for name in ("keyctl", "seccomp", "sched_setattr", "sched_getattr"):
        _system_call(name)
    boot_id()


def take_login_uid(uid: int) -> None:
    """Be `uid` in the host's audit records, for good. Nothing happens where this process is somebody already, or nothing is audited.

    Whoever is nobody yet, as a service and its children are, could call itself root there.
    """
    path = "/proc/self/loginuid"
    with contextlib.suppress(FileNotFoundError):
        with open(path) as file:
            if int(file.read()) != _NOBODY_YET:
                return
        with open(path, "w") as file:
            file.write(str(uid))


@functools.cache
def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None if it is gone or a zombie.

    Together with the boot id it tells a process from a later one that got the same pid.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(4096).rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in b"ZX" else int(fields[19])


def sysctl(name: str) -> str | None:
    """The value of a kernel setting such as `kernel/unprivileged_userns_clone`; None if there is none."""
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return None
