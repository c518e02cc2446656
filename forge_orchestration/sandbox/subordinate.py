"""The ids that root has set aside for a user in `/etc/subuid` and `/etc/subgid`, and the user namespace that has them.

In that namespace the user is 0, and each execution can have an id that is nobody else's on the host: what root does for its
executions, a service user does there. `newuidmap` and `newgidmap`, which are set-uid root, see to it that nobody gets ids that
were not set aside. The namespace is that of the spawner and of all that it forks, and ends with them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from pathlib import Path

import msgspec

from forge_orchestration.errors import HostError
from forge_orchestration.model.sections import IdentitySettings
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.cgroups.base import write

FILE = "/etc/subuid"
REMEDY = "sudo apt-get install uidmap; sudo usermod --add-subuids 1000000-1065535 --add-subgids 1000000-1065535 USER"
_WHOLE = ((0, 0, 2**32 - 1),)
_LEAST = 16  # executions at once: with fewer ids than that it is no use
_INOTIFY_INSTANCES = "16"
_NOBODY = 65534
_TOOL_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


class Range(msgspec.Struct, frozen=True):
    """Ids of the host, from `first` on."""

    first: int
    count: int


def missing() -> str:
    """What this user lacks for executions with ids of their own; empty if nothing is missing."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()} has no line in /etc/passwd"
    for path in ("/etc/subuid", "/etc/subgid"):
        if (found := _set_aside(Path(path), name)) is None or found.count < _LEAST:
            return f"no ids are set aside for {name} in {path}"
    import shutil  # no spawner needs it

    for tool in ("newuidmap", "newgidmap"):
        if shutil.which(tool, path=_TOOL_PATH) is None:
            return f"{tool} is not installed"
    return ""


def enter_if_wanted(identity: IdentitySettings) -> None:
    """Where this is not root: be the one whom executions' own uids belong to, if there are any and nobody wants it otherwise.

    Raises:
        HostError: They are asked for, and cannot be had.
    """
    wanted = identity.without_root
    if os.geteuid() != 0 and (wanted == "subordinate_uid" or (wanted == "auto" and not missing())):
        enter()


def enter() -> None:
    """Give this process, which is single-threaded, a user namespace in which it is 0 and the ids set aside are 1 and up.

    Raises:
        HostError: It cannot have one.
    """
    if lacking := missing():
        raise HostError(f"Executions cannot have ids of their own: {lacking}.", REMEDY)
    name, uid, gid = pwd.getpwuid(os.geteuid()).pw_name, os.geteuid(), os.getegid()
    uids, gids = _set_aside(Path("/etc/subuid"), name), _set_aside(Path("/etc/subgid"), name)
    assert uids is not None and gids is not None
    import subprocess  # seldom needed, and slow to load

    told, tell = os.pipe()
    target = str(os.getpid())
    if (helper := os.fork()) == 0:  # it stays outside, where it may ask for ids
        status = 1
        os.close(tell)  # else its own copy would keep it waiting where the parent fails
        with contextlib.suppress(BaseException):
            os.read(told, 1)
            for tool, own, aside in (("newuidmap", uid, uids), ("newgidmap", gid, gids)):
                words = [tool, target, "0", str(own), "1", "1", str(aside.first), str(aside.count)]
                subprocess.run(words, env={"PATH": _TOOL_PATH}, check=True, stdin=subprocess.DEVNULL)
            status = 0
        os._exit(status)
    try:
        linux.unshare(linux.CLONE_NEWUSER)
        os.write(tell, b".")
    except OSError as error:
        raise HostError(
            f"A user namespace cannot be made: {error}.",
            "Allow them: sudo sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0",
        ) from error
    finally:
        os.close(tell)
        os.close(told)
        status = os.waitpid(helper, 0)[1]
    if status != 0:
        raise HostError("newuidmap or newgidmap refused the ids of /etc/subuid and /etc/subgid.", REMEDY)
    write("/proc/self/projid_map", "0 0 1")  # whoever is first may write it, once
    limit_shared_stocks()


def limit_shared_stocks() -> None:
    """In a user namespace: what each id in it may take of stocks that all of it shares with its owner on the host."""
    write("/proc/sys/user/max_inotify_instances", _INOTIFY_INSTANCES)


def prefix() -> tuple[str, ...]:
    """What to put before a command that is to own the files of this user's executions; nothing where it does not need to."""
    if os.geteuid() == 0 or missing():
        return ()
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from forge_orchestration.sandbox.subordinate import run; run(sys.argv[1:])"
    return (sys.executable, "-I", "-c", code)


def run(command: list[str]) -> None:
    """Become `command`, in such a namespace."""
    enter()
    os.execvp(command[0], command)


def is_entered() -> bool:
    """Whether this process is in a user namespace in which ids have other names than on the host."""
    return _id_map("uid") != _WHOLE


def own_range() -> Range:
    """The ids for executions in the namespace that was entered, by their names outside: users and groups alike in number."""
    uids, gids = (
        next(
            (Range(out + 1 - seen, seen + count - 1) for seen, out, count in _id_map(kind) if seen <= 1 < seen + count), Range(0, 0)
        )
        for kind in ("uid", "gid")
    )
    # the last of 65536 is also what an id looks like that is not there
    return Range(uids.first, min(uids.count, gids.count, _NOBODY - 1))


def outside(uid: int) -> int:
    """What the uid that this process sees is called outside of its user namespace."""
    return next((out + uid - seen for seen, out, count in _id_map("uid") if seen <= uid < seen + count), uid)


def seen_here(uid: int) -> int:
    """The opposite; -1 if nobody here has it."""
    return next((seen + uid - out for seen, out, count in _id_map("uid") if out <= uid < out + count), -1)


def _id_map(kind: str) -> tuple[tuple[int, int, int], ...]:
    with open(f"/proc/self/{kind}_map") as file:
        fields = [[int(one) for one in line.split()] for line in file]
    return tuple((seen, out, count) for seen, out, count in fields)


def _set_aside(path: Path, name: str) -> Range | None:
    """The largest range of `name:first:count` lines; the name may be written as a number."""
    found: list[Range] = []
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            owner, _, numbers = line.partition(":")
            with contextlib.suppress(ValueError):
                first, count = (int(one) for one in numbers.split(":"))
                if owner in (name, str(os.geteuid())):
                    found.append(Range(first, count))
    return max(found, key=lambda one: one.count, default=None)
