"""A real Slurm cluster of the tests' own, on this host: a controller, accounting in a real database, and several nodes.

Keys, sockets, ports and state lie in one folder, which is removed at the end with every process that was started. Nodes are `slurmd`
processes under names of their own, all of which see the same files, as the nodes of a site see its shared file system.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from forge_orchestration_tests.conftest import PATIENCE, host_packages, prerequisite, wait_until

NODES = ("forge1", "forge2", "forge3")
NODE_MIB = 6000
_CONF = """\
ClusterName=forgetest
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ctld}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=associations
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=100000,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
KillWait=5
SlurmdTimeout=10
ReturnToService=2
MinJobAge=60
CommunicationParameters=NoAddrCache
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=ALL MaxTime=1 State=UP PriorityTier=1
"""
_DBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mysql}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


class Cluster:
    """One that runs.

    Attributes:
        environment: What Slurm's commands need to find it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False, timeout=60 * PATIENCE
        )  # fmt: skip
        assert done.returncode == 0 or not check, (command, done.stderr)
        return done.stdout

    def start(self) -> None:
        folder = self.folder
        ports = dict(zip(("ctld", "dbd", "mysql", *NODES), _free_ports(3 + len(NODES)), strict=True))
        password = secrets.token_hex(8)
        names = {"folder": folder, "password": password, **ports}
        nodes = "\n".join(
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[name]} CPUs=8 RealMemory={NODE_MIB} State=UNKNOWN"
            for name in NODES
        )
        (folder / "slurm.conf").write_text(_CONF.format(nodes=nodes, **names))
        dbd = folder / "slurmdbd.conf"
        dbd.write_text(_DBD.format(**names))
        dbd.chmod(0o600)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self._begin_munge("munge")
        data = folder / "mysql"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db"],
            check=True, capture_output=True, timeout=120 * PATIENCE,
        )  # fmt: skip
        database = folder / "mysql.socket"
        self._begin(
            "mariadbd", "mariadbd", "--no-defaults", f"--datadir={data}", "--user=root", f"--socket={database}", "--bind-address=127.0.0.1",
            f"--port={ports['mysql']}", "--innodb-buffer-pool-size=32M", f"--pid-file={folder}/mysql.pid", f"--log-error={folder}/mysql.log",
        )  # fmt: skip
        wait_until("the database", database.exists, 60)
        statements = (
            "CREATE DATABASE slurm; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{0}'; GRANT ALL ON slurm.* TO slurm@'127.0.0.1';"
        )
        client = ["mariadb", "--no-defaults", f"--socket={database}", "--user=root", "--execute", statements.format(password)]
        wait_until("a word of the database", lambda: subprocess.run(client, capture_output=True, check=False).returncode == 0, 60)
        self._begin("slurmdbd", "slurmdbd", "-D")
        wait_until("accounting", lambda: self._answers("sacctmgr", "--immediate", "--noheader", "list", "cluster"), 60)
        self.run("sacctmgr", "--immediate", "add", "cluster", "forgetest", check=False)
        self.run("sacctmgr", "--immediate", "add", "account", "lab", check=False)
        self.run("sacctmgr", "--immediate", "add", "user", "root", "account=lab", check=False)
        self.start_controller()
        for name in NODES:
            self.start_node(name)
        wait_until("all nodes", lambda: self.run("sinfo", "--noheader", "--Node", "--states=idle", "--partition=main", check=False).count("\n") == len(NODES), 60)  # fmt: skip

    def start_controller(self) -> None:
        """`slurmctld`, which is idempotent about its state."""
        self._begin("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        wait_until("the controller", lambda: self._answers("scontrol", "ping"), 60)

    def start_node(self, name: str) -> None:
        """One node."""
        self._begin(name, "slurmd", "-D", "-N", name, "-f", str(self.folder / "slurm.conf"))

    @contextlib.contextmanager
    def another_clock(self, ahead: str) -> Iterator[dict[str, str]]:
        """What Slurm's commands need in their environment to be those of a host whose clock is ahead (`+1h`) of the cluster's."""
        host_packages("faketime")
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))  # the program of that name would be munged's parent
        self._begin_munge("ahead", "env", f"LD_PRELOAD={library}", f"FAKETIME={ahead}")
        configuration = self.folder / "ahead.conf"
        configuration.write_text((self.folder / "slurm.conf").read_text().replace("/munge.socket", "/ahead.socket"))
        wait_until("the other munged", (self.folder / "ahead.socket").exists)
        try:
            yield {"SLURM_CONF": str(configuration)}
        finally:
            self.end("ahead")

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        """End the controller (`slurmctld`) or a node by its name, and wait for that."""
        process = self._processes.pop(name)
        process.send_signal(number)
        process.wait(30 * PATIENCE)

    def close(self) -> None:
        """End everything."""
        with contextlib.suppress(AssertionError, subprocess.SubprocessError):
            self.run("scancel", "--user=root", check=False)
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            process.terminate()
            try:
                process.wait(15 * PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _answers(self, *command: str) -> bool:
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False)
        return done.returncode == 0 and "DOWN" not in done.stdout

    def _begin_munge(self, name: str, *before: str) -> None:
        own = [f"--{what}-file={self.folder}/{name}.{what}" for what in ("pid", "log", "seed")]
        socket = f"--socket={self.folder}/{name}.socket"
        self._begin(name, *before, "munged", "--foreground", "--force", f"--key-file={self.folder}/munge.key", socket, *own)

    def _begin(self, name: str, *command: str) -> None:
        environment = {**os.environ, **self.environment}
        with open(self.folder / f"{name}.out", "ab") as log:
            self._processes[name] = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        time.sleep(0.05)
        assert self._processes[name].poll() is None, (self.folder / f"{name}.out").read_text()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster of three nodes, which this process' own environment points to meanwhile."""
    prerequisite(os.geteuid() == 0, "a cluster of Slurm's needs root")
    host_packages("slurmctld", "slurmd", "slurmdbd", "slurm-client", "munge", "mariadb-server")
    folder = Path(tempfile.mkdtemp(prefix="forge-slurm-"))
    cluster = Cluster(folder)
    before = dict(os.environ)
    try:
        cluster.start()
        os.environ.update(cluster.environment)
        yield cluster
    finally:
        _restore(before, cluster.environment)
        cluster.close()
        shutil.rmtree(folder)


def _restore(before: Mapping[str, str], changed: Mapping[str, str]) -> None:
    for name in changed:
        if name in before:
            os.environ[name] = before[name]
        else:
            os.environ.pop(name, None)
