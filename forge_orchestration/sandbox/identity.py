"""Who an execution is on the host: a uid of its own when Forge runs as root or as a user for whom root has set some aside.

Else it is the user itself, in a namespace. A uid is claimed by a lock in `/run/forge/uids`, or beneath the home folder of the
user to whom they belong, so that two deployments on one host never share one. The kernel
drops the lock with the supervisor that holds it; the file, with a name in it, stays until the supervisor has seen every
process of that uid end, so a claim that was not given back is only taken over after a look at who still runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import zlib
from pathlib import Path

import msgspec

from forge_orchestration.errors import SandboxError
from forge_orchestration.model.sections import IdentitySettings
from forge_orchestration.sandbox import linux, subordinate

CLAIMS = Path("/run/forge/uids")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """As this process sees it: ids that root has set aside for a user have other names in that user's namespace.

    Attributes:
        mode: `own_uid` (started by root), `subordinate_uid` (by a user with ids in `/etc/subuid`), or `user_namespace`.
    """

    mode: str
    uid: int
    gid: int

    @property
    def is_own(self) -> bool:
        """Whether it is nobody else's, the user's own neither."""
        return self.mode != "user_namespace"

    @property
    def host_uid(self) -> int:
        """The uid, as the host calls it."""
        return subordinate.outside(self.uid)


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
        set_aside = subordinate.is_entered()
        offered = subordinate.own_range() if set_aside else subordinate.Range(settings.first_uid, settings.count)
        claims_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        start = zlib.crc32(holder.encode())  # spread, so that concurrent claims seldom meet
        for step in range(offered.count):
            number = (start + step) % offered.count
            if (fd := _try_claim(offered.first + number, holder)) is not None:
                self._fd = fd
                if set_aside:
                    self.identity = Identity(mode="subordinate_uid", uid=1 + number, gid=1 + number)
                else:
                    self.identity = Identity(mode="own_uid", uid=offered.first + number, gid=offered.first + number)
                return
        raise SandboxError(
            f"All uids from {offered.first} to {offered.first + offered.count - 1} are in use.",
            f"Set more aside for this user in {subordinate.FILE}." if set_aside else "Raise identity.count in settings.toml.",
        )

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
            uid = self.identity.host_uid
            if ended or not uid_in_use(uid):
                os.unlink(claims_folder() / str(uid))
            os.close(self._fd)
            self._fd = -1


def claims_folder() -> Path:
    """Where claims lie: one folder for all who could claim the same uids."""
    user = subordinate.outside(os.geteuid())
    # not in `/run/user`: that is there while the user is logged in, and goes then
    if user != 0:
        with contextlib.suppress(KeyError):  # root of a container that is mapped
            return Path(pwd.getpwuid(user).pw_dir, ".local/state/forge/uids")
    return CLAIMS


def _try_claim(uid: int, holder: str) -> int | None:
    fd = _locked_claim(uid, os.O_CREAT)
    if fd is None:
        return None
    # ids set aside for a user are also what rootless containers of that user run as
    if (os.read(fd, 1) or subordinate.is_entered()) and uid_in_use(uid):
        os.close(fd)
        return None
    os.ftruncate(fd, 0)
    os.pwrite(fd, holder.encode(), 0)
    return fd


def _locked_claim(uid: int, flags: int = 0) -> int | None:
    """The claim on `uid`, open and locked by us; None if it is another's, or has just been given back."""
    path = claims_folder() / str(uid)
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
        for entry in os.scandir(claims_folder()):
            with contextlib.suppress(OSError, ValueError):
                found[int(entry.name)] = Path(entry.path).read_bytes().decode(errors="replace")
    return found


def abandoned_claims() -> dict[int, str]:
    """The same of those whose supervisors are gone; it costs some 10 µs for each that lives."""
    found: dict[int, str] = {}
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for name in os.listdir(claims_folder()):
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
                    os.unlink(claims_folder() / str(uid))
                    return True
            finally:
                os.close(fd)
    return False


def uid_in_use(uid: int) -> bool:
    """Whether any process runs as `uid` of the host; one that has ended and waits for its parent does not."""
    uid = subordinate.seen_here(uid)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid == uid and linux.start_time(int(entry.name)) is not None:
                    return True
    return False
