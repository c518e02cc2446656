"""What lies on the host for attacks to find, and what it must look like afterwards.

Secrets hold a token that is nowhere else: wherever it turns up, something was read that should not have been. Beside files that
only root may read there are files and folders open to everybody, because those only a namespace protects.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

_LIBC = ctypes.CDLL(None, use_errno=True)
_IPC_CREAT, _IPC_RMID = 0o1000, 0
_SYSTEM_FILES = ("/etc/passwd", "/etc/hosts", "/etc/ld.so.cache", "/usr/bin/env", "/usr/bin/setpriv", "/usr/bin/bwrap")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx")
_KERNEL_SETTINGS = (
    "kernel/core_pattern",
    "kernel/modprobe",
    "kernel/hostname",
    "kernel/domainname",
    "kernel/sysrq",
    "kernel/pid_max",
    "kernel/panic",
    "kernel/randomize_va_space",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "fs/suid_dumpable",
    "net/ipv4/ip_forward",
    "net/ipv4/ping_group_range",
)


class Canaries:
    """Files, sockets and kernel objects of the host, made in `folder` and around it; removed by `remove`.

    Attributes:
        token: The secret. It is in every canary that can be read.
        data: A file that everybody may write, and `inputs` a folder that everybody may write: every attack has both as inputs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(16)
        name = f"forge-canary-{self.token[:8]}"
        folder.mkdir(mode=0o755)
        self.secret = self._file("secret.txt", self.token, 0o600)
        self.readable = self._file("readable.txt", self.token, 0o644)
        self.data = self._file("data.txt", "as it was\n" * 1000, 0o666)
        self.open_folder = Path("/tmp", name)
        self.inputs = folder / "inputs"
        for open_to_all in (self.open_folder, self.inputs):
            open_to_all.mkdir()
            open_to_all.chmod(0o777)
        self.writable = self._file(str(self.open_folder / "writable.txt"), "as it was", 0o666)
        self._file("inputs/inner.txt", "as it was", 0o666)
        self._plant_links()
        self.shm_file = self._file(f"/dev/shm/{name}", self.token, 0o666)
        self._share_memory()
        self._listen(name)
        self._files = self._look_at_files()
        self._system = self._look_at_system()

    def targets(self) -> dict[str, object]:
        """What an attack is told, for it knows everything: paths, names and numbers, but no content."""
        addresses = [
            one.address for all_of_it in psutil.net_if_addrs().values() for one in all_of_it if one.family is socket.AF_INET
        ]
        return {
            "secret": str(self.secret), "readable": str(self.readable), "writable": str(self.writable),
            "open_folder": str(self.open_folder), "shm_file": str(self.shm_file), "shm_key": self._shm_key, "shm_id": self._shm_id,
            "tcp_port": self._tcp.getsockname()[1], "udp_port": self._udp.getsockname()[1], "abstract": self._abstract_name,
            "socket": self._socket_path, "addresses": [one for one in addresses if not one.startswith("127.")],
            "controller_pid": os.getpid(), "free_port": free_port(),
        }  # fmt: skip

    def assert_untouched(self) -> None:
        """Every file is as it was, nobody has connected, and the host's mounts, devices and settings are the same."""
        assert self._look_at_files() == self._files
        system = self._look_at_system()
        for what, was in self._system.items():
            assert system[what] == was or (what == "mounts" and system[what] <= was), (what, system[what], was)
        for listener in self._listeners:
            with contextlib.suppress(BlockingIOError):
                listener.accept()
                raise AssertionError(f"somebody connected to {listener.getsockname()!r}")
        with contextlib.suppress(BlockingIOError):
            raise AssertionError(f"somebody sent {self._udp.recv(100)!r}")
        for terminal in os.openpty():  # the host can still have what it needs
            os.close(terminal)

    def forget_connections(self) -> None:
        """The test itself has connected."""
        for listener in self._listeners:
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()

    def remove(self) -> None:
        """Take everything off the host again."""
        for one in (*self._listeners, self._udp):
            one.close()
        _LIBC.shmdt(ctypes.c_void_p(self._shm_address))
        _LIBC.shmctl(self._shm_id, _IPC_RMID, None)
        self.shm_file.unlink(missing_ok=True)
        shutil.rmtree(self.open_folder)
        shutil.rmtree(self.folder)

    def _file(self, name: str, content: str, mode: int) -> Path:
        path = self.folder / name
        path.write_text(content)
        path.chmod(mode)
        return path

    def _plant_links(self) -> None:
        links = self.inputs / "links"
        links.mkdir()
        aims = {
            "absolute": str(self.readable), "relative": "../../readable.txt", "to_folder": str(self.folder),
            "to_home": os.environ["FORGE_HOME"], "to_proc": "/proc/1/environ",
        }  # fmt: skip
        for name, aim in aims.items():
            (links / name).symlink_to(aim)

    def _share_memory(self) -> None:
        self._shm_key = int(self.token[:7], 16)
        self._shm_id = _LIBC.shmget(self._shm_key, 4096, _IPC_CREAT | 0o666)
        assert self._shm_id >= 0, os.strerror(ctypes.get_errno())
        _LIBC.shmat.restype = ctypes.c_void_p
        self._shm_address = _LIBC.shmat(self._shm_id, None, 0)
        ctypes.memmove(self._shm_address, self.token.encode(), len(self.token))

    def _listen(self, name: str) -> None:
        tcp = self._tcp = socket.create_server(("0.0.0.0", 0))
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("0.0.0.0", 0))
        self._abstract_name, self._socket_path = name, str(self.open_folder / "host.sock")
        abstract, named = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        abstract.bind("\0" + name)
        named.bind(self._socket_path)
        Path(self._socket_path).chmod(0o777)
        self._listeners = [tcp, abstract, named]
        for one in self._listeners:
            one.listen()
        for one in (*self._listeners, self._udp):
            one.setblocking(False)

    def _look_at_files(self) -> dict[str, tuple[object, ...]]:
        tops = [self.folder, self.open_folder, self.shm_file]
        found = {str(path): _facts(path) for top in tops for path in (top, *_beneath(top))}
        return found | {"shared memory": (ctypes.string_at(self._shm_address, len(self.token)),)}

    def _look_at_system(self) -> dict[str, object]:
        seen: dict[str, object] = {}
        for path in (*_SYSTEM_FILES, os.path.realpath(sys.executable)):
            with contextlib.suppress(FileNotFoundError):
                facts = os.stat(path)
                seen[path] = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_mode)
        for name in _DEVICES:
            facts = os.stat(f"/dev/{name}")
            seen[f"/dev/{name}"] = (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_rdev)
        for name in _KERNEL_SETTINGS:
            with contextlib.suppress(OSError):
                seen[name] = Path("/proc/sys", name).read_text()
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        seen["mounts"] = {(line.split()[4], line.partition(" - ")[2].split()[0]) for line in lines}
        return seen


def free_port() -> int:
    """A port that nobody has, so that the next in number is most likely free too."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def _beneath(top: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(top):
        yield from (Path(folder, name) for name in (*folders, *files))


def _facts(path: Path) -> tuple[object, ...]:
    facts = path.lstat()
    common = (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_nlink if stat.S_ISREG(facts.st_mode) else 0)
    if stat.S_ISLNK(facts.st_mode):
        return (*common, os.readlink(path))
    if stat.S_ISREG(facts.st_mode):
        return (*common, facts.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
    return common
