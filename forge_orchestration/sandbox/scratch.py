"""The workspace: scratch, `/tmp`, outputs and checkpoint of one execution, with one size for all of them.

Started by root, it is a file system of its own on a loop device: past its size the kernel says "No space left on device".
It is mounted in the supervisor's own mount namespace, the device detaches itself, and the image never has a name: a supervisor
that is killed leaves nothing of it. The image is a sparse copy of a formatted template, a millisecond's work.

An ordinary user cannot mount: there it is a folder, a file in it cannot grow past the limit (`RLIMIT_FSIZE`), and the sum is
measured while the command runs and the execution ended when it is past the limit. That is weaker, and the record says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from abc import ABC, abstractmethod
from pathlib import Path

import msgspec

from forge_orchestration.errors import SandboxError
from forge_orchestration.executions.folder import is_execution_id
from forge_orchestration.executions.messages import printable
from forge_orchestration.model.record import Enforced, Measured
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.view import WORKSPACE
from forge_orchestration.units import format_bytes

UNFINISHED = ".new"
_MKFS = ("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard")


_OWN_INODES = 16  # of ext4 itself, and the folders of the workspace
_FILES_ROUNDED = 2048
_LEAST_FILES = 256
_LEAST_ROOM_BYTES = 256 << 20
_DU_TIMEOUT_S = 20.0
_UNSEEN_S = 5.0  # for so long nothing may be known of a folder's size


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """What a workspace may hold: bytes, and files and folders."""

    bytes: int
    files: int


class Workspace(ABC):
    """A workspace that exists from `create` to `remove`."""

    protection: str

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder = folder
        self.size = size
        self.peak_bytes = self.peak_files = 0

    @abstractmethod
    def create(self, identity: Identity) -> dict[str, Enforced]:
        """Make it, empty, for `identity` alone; returns its limits as read back."""

    @abstractmethod
    def is_full(self, *, at_the_end: bool = False) -> bool:
        """Whether its limit stands in the way right now. Keeps `peak_bytes` and `peak_files`. Only `at_the_end` is it looked at in any case."""

    @abstractmethod
    def remove(self) -> tuple[int, int]:
        """Remove it with all it holds, however often it is called; returns bytes freed and mounts removed."""

    def close(self) -> None:  # noqa: B027
        """Let go of what `remove` keeps until this process ends: freeing an image's blocks takes a moment that nobody need wait for."""

    @property
    @abstractmethod
    def peak(self) -> Measured:
        """The most that was seen in it, and how that was seen."""

    @property
    def messages(self) -> Path:
        """The FIFO that becomes `/forge/messages`."""
        return self.folder / "messages"

    def _make_folders(self, identity: Identity) -> None:
        os.mkfifo(self.messages, 0o600)
        for name in WORKSPACE:
            os.mkdir(self.folder / name, 0o700)
            if identity.is_own:
                os.chown(self.folder / name, identity.uid, identity.gid)
        if identity.is_own:
            # not its own: the analysis may add to it, and not read what it or its helpers wrote, nor change that
            os.chmod(self.messages, 0o622)


class LoopWorkspace(Workspace):
    """A file system of its own; `is_full` is true when the kernel has begun, or is about, to refuse writes."""

    protection = "on"

    def __init__(self, scratch_dir: Path, size: Size, name: str = "workspace") -> None:
        # one mount point for all: each supervisor sees its own file system there, and others an empty folder; a `name` of its own
        # only where others are to see it
        super().__init__(scratch_dir / name, size)
        self._has_own_folder = name != "workspace"
        self._image = -1
        self._mounted = False

    def create(self, identity: Identity) -> dict[str, Enforced]:
        template = formatted_template(self.folder.parent / "templates", self.size)
        self.folder.mkdir(mode=0o755, exist_ok=True)
        self._image = _unnamed_file(self.folder.parent)
        _copy_sparse(template, self._image)
        device, loop = linux.attach_loop_device(self._image)
        try:
            linux.mount_ext4(device, self.folder)
            self._mounted = True
        finally:
            os.close(loop)
        self._make_folders(identity)
        space = os.statvfs(self.folder)
        self._free_at_start = (space.f_bavail, space.f_favail)
        available = space.f_bavail * space.f_frsize
        # mkfs rounds the number of files up, to whole table blocks in every group of 128 MiB
        if available > self.size.bytes + 2**20 or space.f_favail > self.size.files + _FILES_ROUNDED + self.size.bytes // 2**22:
            raise SandboxError(
                f"The workspace should hold {format_bytes(self.size.bytes)} in {self.size.files} files, "
                f"but offers {format_bytes(available)} in {space.f_favail}."
            )
        source = f"statvfs of an ext4 image on {device}"
        return {"scratch_bytes": Enforced(value=available, source=source), "files": Enforced(value=space.f_favail, source=source)}

    def is_full(self, *, at_the_end: bool = False) -> bool:
        space = os.statvfs(self.folder)
        used = (self._free_at_start[0] - space.f_bavail) * space.f_frsize
        self.peak_bytes = max(self.peak_bytes, used)
        self.peak_files = max(self.peak_files, self._free_at_start[1] - space.f_favail)
        # the kernel takes room for up to 2 MiB of a large write at once, and refuses it all if that much is not left
        margin = min((2 << 20) // space.f_frsize + 8, self._free_at_start[0] // 8)
        return space.f_bavail < margin or space.f_favail == 0

    def remove(self) -> tuple[int, int]:
        mounts = 0
        if self._mounted:
            self.is_full()
            deadline = time.monotonic() + 5.0
            while True:
                try:
                    linux.unmount(self.folder)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.002)
            self._mounted, mounts = False, 1
        if self._has_own_folder:
            with contextlib.suppress(FileNotFoundError):  # it never came to be made
                self.folder.rmdir()
            self._has_own_folder = False
        return os.fstat(self._image).st_blocks * 512 if mounts else 0, mounts

    def close(self) -> None:
        if self._image >= 0:
            os.close(self._image)
            self._image = -1

    @property
    def peak(self) -> Measured:
        return Measured(value=self.peak_bytes, source="statvfs of the workspace, sampled and at the end")


class FolderWorkspace(Workspace):
    """A folder of the host's file system, measured from time to time."""

    protection = "on: one file by RLIMIT_FSIZE; the sum is measured while it runs, not refused by the kernel"

    def __init__(self, folder: Path, size: Size) -> None:
        super().__init__(folder, size)
        self._next_look = 0.0
        self._last_look = time.monotonic()
        self._full = False

    def create(self, identity: Identity) -> dict[str, Enforced]:
        self.folder.mkdir(mode=0o700)
        self._make_folders(identity)
        return {
            "scratch_bytes": Enforced(value=self.size.bytes, source="measured by the supervisor; RLIMIT_FSIZE for one file"),
            "files": Enforced(value=self.size.files, source="measured by the supervisor"),
        }

    def is_full(self, *, at_the_end: bool = False) -> bool:
        now = time.monotonic()
        if at_the_end or now >= self._next_look:
            try:
                running = not at_the_end
                used, files = folder_bytes(self.folder, running=running), folder_files(self.folder, running=running)
            except SandboxError:  # folders that are moved about get in the way of a look; not of one at the end
                if at_the_end or now - self._last_look > _UNSEEN_S:
                    raise
                return self._full
            self._last_look = now
            self.peak_bytes = max(self.peak_bytes, used)
            self.peak_files = max(self.peak_files, files)
            space = os.statvfs(self.folder)  # files without a name are seen by nobody: what is left for all is
            self._full = used >= self.size.bytes or files > self.size.files or space.f_bavail * space.f_frsize < _LEAST_ROOM_BYTES
            self._next_look = now + min(1.0, max(0.2, 10 * (time.monotonic() - now)))  # seldom, where looking takes long
        return self._full

    def remove(self) -> tuple[int, int]:
        freed = folder_bytes(self.folder)
        remove_tree(self.folder)
        return freed, 0

    @property
    def peak(self) -> Measured:
        return Measured(value=self.peak_bytes, source="sum of allocated blocks, sampled")


def formatted_template(folder: Path, size: Size) -> Path:
    """A formatted, sparse image that offers exactly `size.bytes` to others than root; made once a size and kept.

    Raises:
        SandboxError: It cannot be made.
    """
    path = folder / f"{size.bytes}-{size.files}.img"
    if path.exists():
        return path
    import tempfile  # once a size: no start pays for it

    folder.mkdir(mode=0o700, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, suffix=UNFINISHED)
    try:
        # no more files than there are blocks for, and room for the file system's own tables beside the limit
        inodes = min(size.files, max(_LEAST_FILES, size.bytes // 4096)) + _OWN_INODES
        os.truncate(handle, size.bytes + size.bytes // 50 + inodes * 256 + 2**20)
        _run([*_MKFS, "-N", str(inodes), name])
        _reserve_surplus(Path(name), size.bytes)
        os.rename(name, path)
    except OSError as error:
        raise SandboxError(f"No scratch image can be made in {folder}: {error.strerror}.") from error
    finally:
        os.close(handle)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    return path


def _reserve_surplus(image: Path, limit_bytes: int) -> None:
    """Reserve for root what the file system offers beyond the limit."""
    fields = dict(
        line.split(":", 1) for line in _run(["dumpe2fs", "-h", str(image)]).splitlines() if ":" in line
    )  # fmt: skip
    block, free = int(fields["Block size"]), int(fields["Free blocks"])
    # what the kernel itself sets aside is not in "Free blocks": 2 % of the file system, at most 4096 clusters
    kept_by_kernel = min(int(fields["Block count"]) // 50, 4096)
    # four folders of a block each are made in it
    surplus = free - kept_by_kernel - len(WORKSPACE) - -(-limit_bytes // block)
    if surplus < 0:
        raise SandboxError(f"A scratch image of {format_bytes(limit_bytes)} came out {-surplus} blocks too small.")
    _run(["tune2fs", "-r", str(surplus), str(image)])


def _run(command: list[str]) -> str:
    import subprocess

    environment = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True)
    except FileNotFoundError as error:
        raise SandboxError(f"{command[0]} is not installed.", "Install it: sudo apt-get install e2fsprogs") from error
    except (subprocess.SubprocessError, OSError) as error:
        detail = getattr(error, "stderr", b"") or str(error).encode()
        raise SandboxError(f"{command[0]} failed: {detail.decode(errors='replace').strip()}") from error
    return done.stdout.decode(errors="replace")


def _unnamed_file(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    import tempfile  # a file system that knows no unnamed files

    fd, name = tempfile.mkstemp(dir=folder, suffix=UNFINISHED)
    os.unlink(name)
    return fd


def _copy_sparse(source: Path, target_fd: int) -> None:
    """Copy the written parts of `source`, a few hundred KiB, and leave the rest a hole."""
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(source_fd).st_size
        os.truncate(target_fd, size)
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(source_fd, offset, os.SEEK_DATA)
            except OSError:
                return  # nothing but a hole to the end
            end = os.lseek(source_fd, offset, os.SEEK_HOLE)
            while offset < end:
                data = os.pread(source_fd, min(end - offset, 1 << 20), offset)
                os.pwrite(target_fd, data, offset)
                offset += len(data)
    finally:
        os.close(source_fd)


def folder_files(folder: Path, *, running: bool = False) -> int:
    """Files and folders beneath `folder`, links not followed; also by `du`, for the same reason."""
    return _measured(["du", "-s", "--inodes"], folder, (), running)


def folder_bytes(folder: Path, prefix: tuple[str, ...] = (), *, running: bool = False) -> int:
    """Bytes that the file system has allocated beneath `folder`, links not followed; what vanishes meanwhile is skipped.

    By `du`, which walks folders deeper than any path that the kernel takes at once: nothing can be hidden there.
    """
    return _measured(["du", "-s", "--block-size=1"], folder, prefix, running)


def remove_tree(folder: Path, prefix: tuple[str, ...] = ()) -> None:
    """Remove `folder` and all beneath it, also what its owner closed; links are removed, not followed.

    By `chmod` and `rm`, which do it however deep it is.

    Args:
        prefix: A command that runs them as who may.

    Raises:
        SandboxError: Something is left.
    """
    if folder.is_symlink():
        folder.unlink()
    if folder.exists():
        _tool([*prefix, "chmod", "-R", "u+rwX", os.fspath(folder)])
        _tool([*prefix, "rm", "-rf", "--one-file-system", os.fspath(folder)])
    if folder.exists():
        raise SandboxError(f"The workspace {folder} cannot be removed.", "Remove it by hand.")


def _tool(command: list[str]) -> str:
    """What a program of coreutils prints; it does what it can, and what it could not is seen afterwards."""
    return _tried(command)[0]


def _measured(command: list[str], folder: Path, prefix: tuple[str, ...], running: bool) -> int:
    """The number that `du` prints of `folder`; 0 if there is no such folder.

    An ordinary user's execution may close to it what is its own. Once nothing of it is `running`, and so nothing can be put in the
    way, that is opened first.

    Raises:
        SandboxError: There is none: a limit that cannot be measured is no limit, and nothing goes on without it.
    """
    command = [*prefix, *command, "--one-file-system", os.fspath(folder)]
    said, complaints = _tried(command, _DU_TIMEOUT_S)
    if "Permission denied" in complaints and not running:
        _tool([*prefix, "chmod", "-R", "u+rwX", os.fspath(folder)])
        said, complaints = _tried(command, _DU_TIMEOUT_S)
    if said and "Permission denied" not in complaints:
        return int(said.split()[0])
    if folder.exists():
        why = printable(complaints.strip().splitlines()[-1][:300]) if complaints.strip() else "it said nothing"
        raise SandboxError(f"The size of {folder} cannot be measured: {why}.", "Is du (coreutils) there and working?")
    return 0


def _tried(command: list[str], timeout_s: float | None = None) -> tuple[str, str]:
    import subprocess

    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=timeout_s,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        return "", f"{command[0]} did not end within {late.timeout:g} s"
    return done.stdout, done.stderr


def forget_workspaces(scratch_dir: Path) -> None:
    """Unmount, in this process' own mount namespace, the workspaces of containers, which are mounted where an engine sees them.

    It has copies of those that were there when it was made, and each would keep its file system for as long as this process lives.
    """
    for point in reversed(linux.mount_points(scratch_dir)):
        with contextlib.suppress(OSError):  # it has just gone
            if is_execution_id(point.name) and point.parent.samefile(scratch_dir):
                linux.unmount(point, lazily=True)


def make_workspace(scratch_dir: Path, execution_id: str, size: Size, identity: Identity, *, seen_by_all: bool = False) -> Workspace:
    """The best kind of workspace that this identity can have; `create` it.

    Args:
        seen_by_all: Whether processes of other mount namespaces must find it too.
    """
    if identity.mode == "own_uid":
        return LoopWorkspace(scratch_dir, size, execution_id) if seen_by_all else LoopWorkspace(scratch_dir, size)
    return FolderWorkspace(scratch_dir / execution_id, size)
