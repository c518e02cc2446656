"""A PostgreSQL server of our own as a neighbour: its data, socket and log in one temporary folder, and pgbench as its clients."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

_SCALE = 10  # 1,000,000 accounts, 150 MB: more than the server's own cache
_CLIENTS = 4
_REMEDY = "PostgreSQL is not installed. Install it: sudo apt-get install --no-install-recommends postgresql-15"


class PostgresFailed(Exception):
    """The server or one of its programs failed; the sentence is its own."""


class Postgres:
    """A server that runs from `with` to the end of it, with pgbench's tables. As root it belongs to another user, as it must.

    Raises:
        PostgresFailed: It is not installed, or does not start.
    """

    def __init__(self) -> None:
        self._programs = _find_programs()
        self._user = _unprivileged_user()

    def __enter__(self) -> Postgres:
        self._folder = Path(tempfile.mkdtemp(prefix="forge-bench-pg-", dir="/var/tmp"))
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self._data = self._folder / "data"
        try:
            # checksums, so that pg_amcheck reads what the disk gave back; the rest is the server's default, fsync included
            self._run("initdb", "-D", self._data, "-A", "trust", "-U", "bench", "--data-checksums", "--no-sync")
            options = f"-c listen_addresses= -c unix_socket_directories={self._folder}"
            self._run("pg_ctl", "-D", self._data, "-w", "-l", self._folder / "server.log", "-o", options, "start")
            self._run("createdb", "bench")
            self._run("pgbench", "-i", "-q", "-s", str(_SCALE), "bench")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if (self._data / "postmaster.pid").exists():
                self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")
        finally:
            shutil.rmtree(self._folder)

    def settle(self) -> None:
        """Write everything out, so that no measurement pays for what happened before it."""
        self._run("psql", "-qc", "CHECKPOINT", "bench")

    def start_load(self, rate: int, seconds: float) -> subprocess.Popen[str]:
        """Start pgbench: `rate` transactions a second come in whether or not the earlier ones are done, as users do."""
        for old in self._folder.glob("latency.*"):
            old.unlink()
        command = ["pgbench", "-n", "-c", str(_CLIENTS), "-j", "2", "-T", str(round(seconds)), "--rate", str(rate)]
        command += ["-l", f"--log-prefix={self._folder}/latency", "bench"]
        return self._popen(*command)

    def latencies_s(self, load: subprocess.Popen[str], skip_s: float) -> tuple[list[float], int]:
        """Wait for pgbench; from a transaction's due time to its end, without the first `skip_s`; and how many failed."""
        said, complaint = load.communicate()
        if load.returncode != 0:
            raise PostgresFailed(f"pgbench: {complaint.strip()[-500:]}")
        lines = [line.split() for path in self._folder.glob("latency.*") for line in path.read_text().splitlines()]
        starts = min(float(fields[4]) + float(fields[5]) / 1e6 for fields in lines)
        kept = [fields[2] for fields in lines if float(fields[4]) + float(fields[5]) / 1e6 >= starts + skip_s]
        failed = next(int(line.split()[4]) for line in said.splitlines() if line.startswith("number of failed transactions"))
        return [float(time_us) / 1e6 for time_us in kept if time_us != "failed"], failed

    def check(self) -> str:
        """What `pg_amcheck` finds wrong in any table or index; empty if nothing."""
        try:
            return self._run("pg_amcheck", "--install-missing", "--heapallindexed", "--parent-check", "bench").strip()
        except PostgresFailed as error:
            return str(error)

    def _run(self, *words: str | Path) -> str:
        process = self._popen(*words)
        said, complaint = process.communicate(timeout=300)
        if process.returncode != 0:
            raise PostgresFailed(f"{words[0]}: {(said + complaint).strip()[-500:]}")
        return said

    def _popen(self, *words: str | Path) -> subprocess.Popen[str]:
        user = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []} if self._user is not None else {}
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PGHOST": str(self._folder), "PGUSER": "bench"}
        # into files, not pipes, for the server's start: it keeps what it inherits, and the pipe would never end
        quiet = words[0] == "pg_ctl"
        return subprocess.Popen(
            [self._programs / words[0], *words[1:]], env=environment, cwd=self._folder, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else subprocess.PIPE, stderr=subprocess.DEVNULL if quiet else subprocess.PIPE, **user,
        )  # fmt: skip


def _find_programs() -> Path:
    """The newest version's own folder: Debian's wrappers in the path choose a cluster of the system."""
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/pgbench")]
    if versions:
        return max(versions, key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0)
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    raise PostgresFailed(_REMEDY)


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Who the server runs as; None: this very user."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresFailed("There is no user 'postgres' or 'nobody' to run the server as.")
