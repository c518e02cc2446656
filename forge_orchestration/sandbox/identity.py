"""Who an execution is on the host: a uid of its own when Forge runs as root, the user itself in a namespace otherwise.

A uid is claimed host-wide by a lock in `/run/forge/uids`, so that two deployments on one host never share one. The kernel
drops the lock with the supervisor that holds it; the file, with a name in it, stays until the supervisor has seen every
process of that uid end, so a claim that was not given back is only taken over after a look at who still runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from pathlib import Path

import msgspec

from forge_orchestration.errors import SandboxError
from forge_orchestration.sandbox import linux
from forge_orchestration.settings import IdentitySettings

CLAIMS = Path("/run/forge/uids")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """`mode` is `own_uid` (started by root) or `user_namespace`; `uid` and `gid` are the host's."""

    mode: str
    uid: int
    gid: int


class Claim:
    """An identity that is nobody else's until `release`.

    Raises:
        SandboxError: Every uid of the range is in use.
    """

    def __init__(self, settings: IdentitySettings, holder: str) -> None:
        self._fd = -1
        if os.geteuid() != 0:
            self.identity = Identity(mode="user_namespace", uid=os.geteuid(), gid=os.getegid())
            return
        CLAIMS.mkdir(mode=0o700, parents=True, exist_ok=True)
        start = zlib.crc32(holder.encode())  # spread, so that concurrent claims seldom meet
        for step in range(settings.count):
            uid = settings.first_uid + (start + step) % settings.count
            if (fd := _try_claim(uid, holder)) is not None:
                self._fd = fd
                self.identity = Identity(mode="own_uid", uid=uid, gid=uid)
                return
        last = settings.first_uid + settings.count - 1
        raise SandboxError(f"All uids from {settings.first_uid} to {last} are in use.", "Raise identity.count in settings.toml.")

    def hand_over(self, holder: str) -> None:
        """Write another name into the claim: it was made ahead, and now it is known for what."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, holder.encode(), 0)

    def release(self, *, ended: bool) -> None:
        """Give the identity back. Unless all processes are known to have `ended`, it is first seen whether any is left.

        A claim that cannot be given back keeps its name, and so its uid, until `forge gc` finds that all have ended.
        """
        if self._fd >= 0:
            if ended or not uid_in_use(self.identity.uid):
                os.unlink(CLAIMS / str(self.identity.uid))
            os.close(self._fd)
            self._fd = -1


def _try_claim(uid: int, holder: str) -> int | None:
    fd = _locked_claim(uid, os.O_CREAT)
    if fd is None:
        return None
    if os.read(fd, 1) and uid_in_use(uid):
        os.close(fd)
        return None
    os.ftruncate(fd, 0)
    os.pwrite(fd, holder.encode(), 0)
    return fd


def _locked_claim(uid: int, flags: int = 0) -> int | None:
    """The claim on `uid`, open and locked by us; None if it is another's, or has just been given back."""
    path = CLAIMS / str(uid)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.lstat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def claims() -> dict[int, str]:
    """Every claim on this host, of all deployments: its holder's name by uid."""
    found: dict[int, str] = {}
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for entry in os.scandir(CLAIMS):
            with contextlib.suppress(OSError, ValueError):
                found[int(entry.name)] = Path(entry.path).read_bytes().decode(errors="replace")
    return found


def abandoned_claims() -> dict[int, str]:
    """The same of those whose supervisors are gone; it costs some 10 µs for each that lives."""
    found: dict[int, str] = {}
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for name in os.listdir(CLAIMS):
            with contextlib.suppress(OSError, ValueError):
                if (fd := _locked_claim(int(name))) is not None:
                    found[int(name)] = os.pread(fd, 4096, 0).decode(errors="replace")
                    os.close(fd)
    return found


def release_claim(uid: int) -> bool:
    """Give back a claim that its supervisor did not; False if the supervisor lives, or any process runs as `uid`."""
    with contextlib.suppress(FileNotFoundError):
        if (fd := _locked_claim(uid)) is not None:
            try:
                if not uid_in_use(uid):
                    os.unlink(CLAIMS / str(uid))
                    return True
            finally:
                os.close(fd)
    return False


def uid_in_use(uid: int) -> bool:
    """Whether any process on the host runs as `uid`; one that has ended and waits for its parent does not."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid == uid and linux.start_time(int(entry.name)) is not None:
                    return True
    return False
