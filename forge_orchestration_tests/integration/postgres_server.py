"""A real PostgreSQL server for a test, whose files it may damage."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forge_orchestration_tests.conftest import host_program, prerequisite

PAGE = 8192


class Server:
    """One server in a folder of its own; started by root it belongs to `postgres` or `nobody`, as it must.

    Args:
        fsync: Whether it waits for the disk, as a server does by default.
    """

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        self._fsync = "on" if fsync else "off"
        host_program("psql", "postgresql")
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        prerequisite(bool(programs), "PostgreSQL is not installed: sudo apt-get install postgresql")
        self.folder, self.data, self._programs = folder, folder / "data", programs[-1].parent
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:
            user = next(user for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody"))
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.url = f"postgresql://bench@/postgres?host={folder}"
        self.run("initdb", "-D", self.data, "-A", "trust", "-U", "bench", "--data-checksums", "--no-sync")

    def run(self, program: str, *words: str | Path) -> str:
        done = subprocess.run(
            [self._programs / program, *words], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if program == "psql" else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, text=True, check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, **self._user,  # type: ignore[call-overload]
        )  # fmt: skip
        return str(done.stdout)

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync={self._fsync}"
        self.run("pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "-o", options, "start")

    def stop(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def ask(self, sql: str) -> str:
        return self.run("psql", "-qAtc", sql, self.url).strip()

    def damage(self, table: str) -> None:
        """Overwrite a part of a page of a table, with the server stopped meanwhile."""
        self.ask("CHECKPOINT")
        path = self.data / self.ask(f"SELECT pg_relation_filepath('{table}')")
        self.stop()
        with open(path, "r+b") as file:
            file.seek(3 * PAGE + 512)
            file.write(b"\xff" * 1024)
        self.start()


@contextmanager
def running_server(*, fsync: bool = False) -> Iterator[Server]:
    """A server that runs in a folder where its own user may go, and is removed with it."""
    folder = Path(tempfile.mkdtemp(prefix="forge-test-pg-", dir="/var/tmp"))
    try:
        server = Server(folder, fsync=fsync)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
