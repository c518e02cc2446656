"""`make bench`: what a sandboxed execution costs, beside the alternatives, measured by turns, in random order, in the same run.

forge (warm)       the local executor, called in a process that has called it before: supervisor, record, logs, cleanup included
hand-written       the shell line that an administrator would write for the same isolation and limits: cgroups for memory, cpu,
                   processes and freezer, the same namespaces, view, uid and filter; no supervisor, record, logs or scratch
hand-written, bare the least that can be called a sandbox with limits: no own uid, no filter, a tmpfs for everything
runexec            BenchExec's, a process a call, as `forge exec` is
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from forge_orchestration_tests.bench_inside import RUNTIME, bench_inside, write_runtime
from forge_orchestration_tests.bench_verify import bench_verify

ROUNDS = 50

_PREPARE = """set -e
g=/sys/fs/cgroup n=forge-bench/$1
mkdir $g/memory/$n $g/cpu/$n $g/pids/$n $g/freezer/$n
echo 2147483648 >$g/memory/$n/memory.limit_in_bytes
echo 100000 >$g/cpu/$n/cpu.cfs_quota_us
echo 100 >$g/pids/$n/pids.max
"""
_JOIN = """for c in memory cpu pids freezer; do echo 0 >$g/$c/$n/cgroup.procs; done
"""
# a group whose last process has just ended is busy for a moment: without the loop, groups are left behind
_REMOVE = """until rmdir $g/memory/$n $g/cpu/$n $g/pids/$n $g/freezer/$n 2>/dev/null; do
  [ -d $g/memory/$n -o -d $g/cpu/$n -o -d $g/pids/$n -o -d $g/freezer/$n ] || break
done
"""
_BARE = (
    "bwrap --unshare-all --die-with-parent --new-session --clearenv --ro-bind /usr /usr --symlink usr/bin /bin "
    "--symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp true"
)


class Table:
    """Rows of medians, and the bars that were promised."""

    def __init__(self) -> None:
        self.failed = False

    def row(self, name: str, times_s: list[float]) -> float:
        """Print one row; returns its median in ms."""
        ordered = sorted(times_s)
        median = statistics.median(ordered) * 1000
        print(
            f"  {name:<44} {median:8.1f} ms   (p10 {ordered[len(ordered) // 10] * 1000:.1f}, p90 {ordered[-len(ordered) // 10] * 1000:.1f})"
        )
        return median

    def bar(self, what: str, value: float, most: float) -> None:
        """Print one promised ratio."""
        held = value <= most
        self.failed |= not held
        print(f"  {'HOLDS' if held else 'FAILS':<6} {what}: {value:.2f} (bar: at most {most:g})")


def main() -> int:
    """Print the tables; exit status 1 if a bar does not hold."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = arguments.parse_args().rounds
    home = Path(tempfile.mkdtemp(prefix="forge-bench-"))
    os.environ["FORGE_HOME"] = str(home)
    table = Table()
    try:
        write_runtime(home)
        _forge("runtimes", "build", "forge-python", RUNTIME)
        bench_warm(table, rounds)
        bench_process(table, rounds)
        bench_input(table)
        bench_inside(table)
        bench_verify(table)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return 1 if table.failed else 0


def bench_warm(table: Table, rounds: int) -> None:
    """`true` by the local executor in a warm process, against hand-written lines."""
    import forge_orchestration

    def forge() -> None:
        assert forge_orchestration.run(["true"]).succeeded

    contenders: dict[str, Callable[[], None]] = {"bare subprocess": lambda: _run(["true"]), "forge, local executor, warm": forge}
    root = os.geteuid() == 0 and Path("/sys/fs/cgroup/memory").is_dir()
    if root:
        groups = [Path("/sys/fs/cgroup", controller, "forge-bench") for controller in ("memory", "cpu", "pids", "freezer")]
        for group in groups:
            group.mkdir(exist_ok=True)
        contenders["hand-written bwrap + cgroup line, same isolation"] = _line(_same_isolation())
        contenders["hand-written bwrap + cgroup line, bare"] = _line(_BARE)
    if docker := _docker_command():
        contenders["docker run"] = lambda: _run(docker)
    try:
        print(f"\n`true`, medians of {rounds}, in turn")
        medians = {name: table.row(name, times) for name, times in _in_turn(contenders, rounds).items()}
    finally:
        if root:
            for group in groups:
                group.rmdir()
    if root:
        ours = medians["forge, local executor, warm"]
        table.bar(
            "forge, warm / hand-written line, same isolation",
            ours / medians["hand-written bwrap + cgroup line, same isolation"],
            2.0,
        )
        print(
            f"         forge, warm / hand-written line, bare: {ours / medians['hand-written bwrap + cgroup line, bare']:.2f} (no bar: it isolates less)"
        )
    else:
        print("  the hand-written line needs root and cgroup v1: no ratio here")
    if not docker:
        print("  docker run: no engine answers here")


def bench_process(table: Table, rounds: int) -> None:
    """`forge exec -- true` as a whole process, against `runexec true`."""
    runexec = Path(sys.executable).with_name("runexec")
    contenders: dict[str, Callable[[], None]] = {"forge exec -- true": lambda: _forge("exec", "--", "true")}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(runexec),
            "--no-container",
            "--memlimit",
            "2GB",
            "--walltimelimit",
            "1800",
            "--output",
            f"{folder}/log",
            "true",
        ]
        contained = [str(runexec), "--memlimit", "2GB", "--walltimelimit", "1800", "--read-only-dir", "/", "--overlay-dir", "/home"]
        contained += ["--output", f"{folder}/log", "true"]
        chosen = contained if _works(contained) else command if _works(command) else None
        if chosen:
            contenders["runexec true" + (" (no container: it cannot make one here)" if chosen is command else "")] = lambda: _run(
                chosen
            )
        print(f"\nwhole processes, medians of {rounds}, in turn")
        medians = [table.row(name, times) for name, times in _in_turn(contenders, rounds).items()]
    if chosen:
        table.bar("forge exec / runexec", medians[0] / medians[1], 1.0)
    else:
        print("  runexec cannot run here: " + _why_not(command))


def bench_input(table: Table) -> None:
    """A 1 GiB input is bound, not copied; its digest is computed once and kept."""
    import forge_orchestration

    with tempfile.TemporaryDirectory(prefix="forge-bench-input-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "input")
        with open(path, "wb") as file:
            for _ in range(1024):
                file.write(os.urandom(1 << 20))
        path.chmod(0o644)
        started = time.perf_counter()
        record = forge_orchestration.run(["true"], inputs={"big": str(path)})
        first_s = time.perf_counter() - started
        assert record.succeeded and record.inputs[0].bytes == 1 << 30
        contenders = {
            "true with a 1 GiB input": lambda: forge_orchestration.run(["true"], inputs={"big": str(path)}),
            "true without": lambda: forge_orchestration.run(["true"]),
        }
        print("\na 1 GiB input, medians of 20, in turn")
        print(f"  {'the first time, with its sha256':<44} {first_s * 1000:8.1f} ms")
        medians = [table.row(name, times) for name, times in _in_turn(contenders, 20).items()]
        started = time.perf_counter()
        shutil.copyfile(path, Path(folder, "copy"))
        print(f"  {'a copy of it, for comparison':<44} {(time.perf_counter() - started) * 1000:8.1f} ms")
    table.bar("with a 1 GiB input / without", medians[0] / medians[1], 1.25)


def _in_turn(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():  # once without a clock
        contender()
    order = list(contenders.items())
    for _ in range(rounds):
        # what ran before tells: a kernel that has just moved a process between groups moves the next one ten times faster
        random.shuffle(order)
        for name, contender in order:
            started = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - started)
    return times


def _same_isolation() -> str:
    """The sandbox's own command line, as the executor makes it, without what only Forge has: gate, messages, scratch file system."""
    from forge_orchestration.sandbox import view

    binds, links = view.system_view()
    words = "bwrap --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup --hostname forge --die-with-parent --new-session"
    words += " --clearenv --cap-drop ALL --cap-add CAP_SETUID --cap-add CAP_SETGID --cap-add CAP_SETPCAP"
    words += "".join(f" --ro-bind {path} {path}" for path in binds) + "".join(
        f" --symlink {to} {path}" for path, to in links.items()
    )
    words += " --proc /proc --dev /dev --perms 1777 --tmpfs /dev/shm --perms 1777 --tmpfs /tmp --remount-ro / --seccomp 9"
    words += " setpriv --reuid=65533 --regid=65533 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs"
    return words + " env -i PATH=/usr/bin:/bin HOME=/tmp true 9<$2"


def _line(sandbox: str) -> Callable[[], None]:
    from forge_orchestration.sandbox.seccomp import filter_program

    program = Path(os.environ["FORGE_HOME"], "filter.bpf")
    program.write_bytes(filter_program())
    script = f"{_PREPARE}({_JOIN}exec {sandbox})\n{_REMOVE}"
    count = iter(range(1 << 30))
    tag = len(sandbox)
    return lambda: _run(["sh", "-c", script, "sh", f"{tag}-{next(count)}", str(program)])


def _docker_command() -> list[str] | None:
    if not shutil.which("docker"):
        return None
    images = subprocess.run(["docker", "images", "-q"], capture_output=True, text=True, timeout=20, check=False)
    image = images.stdout.split()
    return ["docker", "run", "--rm", "--network", "none", image[0], "true"] if images.returncode == 0 and image else None


def _forge(*arguments: str) -> None:
    _run([sys.executable, "-m", "forge_orchestration.cli.main", *arguments])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _works(command: list[str]) -> bool:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode == 0 and "terminationreason" not in done.stdout and "returnvalue=0" in done.stdout


def _why_not(command: list[str]) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return " ".join((done.stderr or done.stdout).split())[-300:]


if __name__ == "__main__":
    sys.exit(main())
