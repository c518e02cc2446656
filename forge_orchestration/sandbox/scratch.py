"""The workspace: scratch, `/tmp`, outputs and checkpoint of one execution, with one size for all of them.

Started by root, it is a file system of its own on a loop device: past its size the kernel says "No space left on device".
It is mounted in the supervisor's own mount namespace and the device detaches itself, so a supervisor that is killed
leaves an image file behind and no mount. The image is a sparse copy of a formatted template, a millisecond's work.

An ordinary user cannot mount: there it is a folder, a file in it cannot grow past the limit (`RLIMIT_FSIZE`), and the sum is
measured while the command runs and the execution ended when it is past the limit. That is weaker, and the record says so.
"""

from __future__ import annotations

import contextlib
import os
import time
from abc import ABC, abstractmethod
from pathlib import Path

from forge_orchestration.errors import SandboxError
from forge_orchestration.model.record import Enforced, Measured
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.view import WORKSPACE
from forge_orchestration.units import format_bytes

_MKFS = ("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard")


class Workspace(ABC):
    """A workspace that exists from `create` to `remove`."""

    protection: str

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.peak_bytes = 0

    @abstractmethod
    def create(self, identity: Identity) -> Enforced:
        """Make it, empty, for `identity` alone; returns the limit as read back."""

    @abstractmethod
    def is_full(self, *, at_the_end: bool = False) -> bool:
        """Whether its limit stands in the way right now. Keeps `peak_bytes`. Only `at_the_end` is it looked at in any case."""

    @abstractmethod
    def remove(self) -> tuple[int, int]:
        """Remove it with all it holds, however often it is called; returns bytes freed and mounts removed."""

    @property
    @abstractmethod
    def peak(self) -> Measured:
        """The most that was seen in it, and how that was seen."""

    def _make_folders(self, identity: Identity) -> None:
        for name in WORKSPACE:
            path = self.folder / name
            path.mkdir(mode=0o700)
            if identity.mode == "own_uid":
                os.chown(path, identity.uid, identity.gid)


class LoopWorkspace(Workspace):
    """A file system of its own; `is_full` is true when the kernel has begun, or is about, to refuse writes."""

    protection = "on"

    def __init__(self, folder: Path, limit_bytes: int, templates: Path) -> None:
        super().__init__(folder, limit_bytes)
        self._image = folder.with_name(folder.name + ".img")
        self._templates = templates
        self._mounted = False

    def create(self, identity: Identity) -> Enforced:
        template = formatted_template(self._templates, self.limit_bytes)
        self.folder.mkdir(mode=0o755)
        image = os.open(self._image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _copy_sparse(template, image)
            device, loop = linux.attach_loop_device(image)
            try:
                linux.mount_ext4(device, self.folder)
                self._mounted = True
            finally:
                os.close(loop)
        finally:
            os.close(image)
        self._make_folders(identity)
        space = os.statvfs(self.folder)
        self._free_at_start = (space.f_bavail, space.f_favail)
        available = space.f_bavail * space.f_frsize
        if available > self.limit_bytes + 2**20:
            raise SandboxError(f"The workspace should hold {format_bytes(self.limit_bytes)}, but offers {format_bytes(available)}.")
        return Enforced(value=available, source=f"statvfs of an ext4 image on {device}")

    def is_full(self, *, at_the_end: bool = False) -> bool:
        space = os.statvfs(self.folder)
        used = (self._free_at_start[0] - space.f_bavail) * space.f_frsize
        self.peak_bytes = max(self.peak_bytes, used)
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
        freed = 0
        with contextlib.suppress(FileNotFoundError):
            freed = os.stat(self._image).st_blocks * 512
            os.unlink(self._image)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self.folder)
        return freed, mounts

    @property
    def peak(self) -> Measured:
        return Measured(value=self.peak_bytes, source="statvfs of the workspace, sampled and at the end")


class FolderWorkspace(Workspace):
    """A folder of the host's file system, measured from time to time."""

    protection = "on: one file by RLIMIT_FSIZE; the sum is measured while it runs, not refused by the kernel"

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        super().__init__(folder, limit_bytes)
        self._next_look = 0.0
        self._full = False

    def create(self, identity: Identity) -> Enforced:
        self.folder.mkdir(mode=0o700)
        self._make_folders(identity)
        return Enforced(value=self.limit_bytes, source="measured by the supervisor; RLIMIT_FSIZE for one file")

    def is_full(self, *, at_the_end: bool = False) -> bool:
        now = time.monotonic()
        if at_the_end or now >= self._next_look:
            used = folder_bytes(self.folder)
            self.peak_bytes = max(self.peak_bytes, used)
            self._full = used >= self.limit_bytes
            self._next_look = now + max(0.2, 10 * (time.monotonic() - now))  # at most a tenth of the time is spent looking
        return self._full

    def remove(self) -> tuple[int, int]:
        freed = folder_bytes(self.folder)
        remove_tree(self.folder)
        return freed, 0

    @property
    def peak(self) -> Measured:
        return Measured(value=self.peak_bytes, source="sum of allocated blocks, sampled")


def formatted_template(folder: Path, limit_bytes: int) -> Path:
    """A formatted, sparse image that offers exactly `limit_bytes` to others than root; made once a size and kept.

    Raises:
        SandboxError: It cannot be made.
    """
    path = folder / f"{limit_bytes}.img"
    if path.exists():
        return path
    import tempfile  # once a size: no start pays for it

    folder.mkdir(mode=0o700, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, suffix=".new")
    try:
        # an inode for every 16 KiB, as mkfs has it, and room for the file system's own tables beside the limit
        inodes = max(256, limit_bytes // 16_384)
        os.truncate(handle, limit_bytes + limit_bytes // 50 + inodes * 256 + 2**20)
        _run([*_MKFS, "-N", str(inodes), name])
        _reserve_surplus(Path(name), limit_bytes)
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


def folder_bytes(folder: Path) -> int:
    """Bytes that the file system has allocated beneath `folder`, links not followed; what vanishes meanwhile is skipped.

    By `du`, which walks folders deeper than any path that the kernel takes at once: nothing can be hidden there.
    """
    said = _tool(["du", "-s", "--block-size=1", "--one-file-system", os.fspath(folder)])
    if said:
        return int(said.split()[0])
    if folder.exists():  # a limit that cannot be measured is no limit: nothing goes on without it
        raise SandboxError(f"The size of {folder} cannot be measured.", "Is du (coreutils) there and working?")
    return 0


def remove_tree(folder: Path) -> None:
    """Remove `folder` and all beneath it, also what its owner closed; links are removed, not followed.

    By `chmod` and `rm`, which do it however deep it is.

    Raises:
        SandboxError: Something is left.
    """
    if folder.exists():
        _tool(["chmod", "-R", "u+rwX", os.fspath(folder)])
        _tool(["rm", "-rf", "--one-file-system", os.fspath(folder)])
    if folder.exists():
        raise SandboxError(f"The workspace {folder} cannot be removed.", "Remove it by hand.")


def _tool(command: list[str]) -> str:
    """What a program of coreutils prints; it does what it can, and what it could not is seen afterwards."""
    import subprocess

    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    return done.stdout
