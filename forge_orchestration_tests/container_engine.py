"""A real container engine of the tests' own: its data, socket and groups are removed at the end. No image has to be fetched for it."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from forge_orchestration.sandbox.linux import unmount_beneath
from forge_orchestration_tests.conftest import host_program, prerequisite, wait_until

PARENT = "forge-docker-test"


class Engine:
    """An engine that can be stopped and started again.

    Args:
        live_restore: Whether containers go on while it is stopped.
    """

    def __init__(self, folder: Path, *, live_restore: bool) -> None:
        self._folder, self._live_restore = folder, live_restore
        self.url = f"unix://{folder}/socket"
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        folder = self._folder
        command = [
            host_program("dockerd", "docker.io"), "--host", self.url, "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"),
            "--pidfile", str(folder / "pid"), "--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs",
            f"--cgroup-parent=/{PARENT}", *(["--live-restore"] if self._live_restore else []),
        ]  # fmt: skip
        log = folder / "log"
        with open(log, "wb") as file:
            self._daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        assert wait_until("the engine", lambda: b"API listen" in log.read_bytes(), 60)

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(60)
            self._daemon = None


@contextlib.contextmanager
def running_engine(*, live_restore: bool = False) -> Iterator[Engine]:
    """One that runs."""
    prerequisite(os.geteuid() == 0, "a container engine needs root")
    folder = Path(tempfile.mkdtemp(prefix="forge-docker-"))
    started = Engine(folder, live_restore=live_restore)
    started.start()
    try:
        yield started
    finally:
        started.stop()
        unmount_beneath(folder)  # what it leaves for containers that go on without it
        for group in Path("/sys/fs/cgroup").glob(f"*/{PARENT}"):
            with contextlib.suppress(OSError):
                group.rmdir()
        shutil.rmtree(folder)


def import_busybox(engine: str, *changes: str) -> str:
    """Have the engine make an image of busybox; returns its id.

    Args:
        changes: Instructions as of a Dockerfile: `ENV NAME=value`, `VOLUME /data`.
    """
    import docker

    busybox = Path(host_program("busybox", "busybox-static")).read_bytes()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, kind in (("bin", tarfile.DIRTYPE), ("tmp", tarfile.DIRTYPE), ("bin/busybox", tarfile.REGTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.size = (
                kind,
                0o1777 if name == "tmp" else 0o755,
                len(busybox) if kind == tarfile.REGTYPE else 0,
            )
            archive.addfile(entry, io.BytesIO(busybox))
        for name in ("sh", "true", "id", "touch", "test", "cat", "sleep", "ls", "env", "dd"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
    tag = f"forge-test:{len(changes) + 1}"
    with contextlib.closing(docker.DockerClient(base_url=engine)) as client:
        name, _, number = tag.partition(":")
        client.api.import_image_from_data(data.getvalue(), repository=name, tag=number, changes=list(changes) or None)
        return str(client.images.get(tag).id)
