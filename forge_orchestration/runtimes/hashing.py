"""sha256 of many files at once, a thread a core: OpenSSL works outside Python's lock, with the processor's own instructions."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

_READ_BYTES = 1 << 20


def sha256_of(root: Path, files: Iterable[tuple[str, int]]) -> dict[str, str]:
    """The digest by path of each of `files`, given as path beneath `root` and size in bytes; what cannot be read has none."""
    from concurrent.futures import ThreadPoolExecutor  # no start of an execution pays for it

    cores = len(os.sched_getaffinity(0))
    shares: list[list[str]] = [[] for _ in range(cores)]
    loads = [0] * cores
    for path, size in sorted(files, key=lambda one: -one[1]):  # the largest first, each to who has least
        least = loads.index(min(loads))
        shares[least].append(path)
        loads[least] += size + 20_000  # opening a file takes as long as reading so much
    found: dict[str, str] = {}
    try:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return found
    try:
        with ThreadPoolExecutor(cores) as pool:
            for part in pool.map(lambda share: _share(root_fd, share), shares):
                found |= part
    finally:
        os.close(root_fd)
    return found


def _share(root_fd: int, paths: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            if (digest := _sha256(root_fd, path)) is not None:
                found[path] = digest
    return found


def _sha256(root_fd: int, path: str) -> str | None:
    """None if it is no file any more: whoever opened a FIFO would wait for its other end."""
    # beneath a descriptor: with the root before it, a path may be longer than paths can be
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        digest = hashlib.sha256()
        while block := os.read(fd, _READ_BYTES):
            digest.update(block)
        return digest.hexdigest()
    finally:
        os.close(fd)
