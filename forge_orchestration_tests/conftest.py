"""What every test module may use: prerequisites, a `FORGE_HOME` with a built runtime, the `forge` command, and a last look for leaks.

    def test_it(forge: Forge) -> None:
        record = forge.record("exec", "--", "true")     # runs it with --json, returns the ExecutionRecord
        done = forge("executions", "list")              # a CompletedProcess[str]
        with forge.started("exec", "--", "sleep", "60") as process: ...

At the end of the session nothing of any home that was used may be left on the host: see `leftovers`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from forge_orchestration.model.record import ExecutionRecord, record_from_json

T = TypeVar("T")
RUNTIME = "forge-python"
# how much slower than usual this host is known to be: an emulated one is
PATIENCE = float(os.environ.get("FORGE_TESTS_PATIENCE", "1"))
_TIMEOUT_S = 60.0 * PATIENCE
_ENDING_S = 10.0
_homes: list[Path] = []
_executions: dict[Path, set[str]] = {}


def prerequisite(condition: object, reason: str) -> None:
    """What a test needs of its host: without it, skip with `reason` on a laptop, and fail in CI."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"missing prerequisite: {reason}", pytrace=False)
    pytest.skip(reason)


def host_program(name: str, package: str) -> str:
    """The path of a program of the distribution; CI installs what it does not have, as it does for everything else."""
    if shutil.which(name) is None:
        host_packages(package)
    found = shutil.which(name)
    prerequisite(found is not None, f"{name} is not installed: sudo apt-get install {package}")
    assert found is not None
    return found


def host_packages(*packages: str) -> None:
    """See that packages of the distribution are installed; CI installs those that are not."""
    if not (present := _are_installed(packages)) and os.environ.get("CI") and os.geteuid() == 0:
        with open("/run/lock/forge-tests-packages", "w") as turn:  # two workers of pytest may want some at once
            fcntl.flock(turn, fcntl.LOCK_EX)
            _install_packages(packages)
        present = _are_installed(packages)
    prerequisite(present, f"missing packages: sudo apt-get install {' '.join(packages)}")


def _are_installed(packages: Sequence[str]) -> bool:
    command = ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev}\n", *packages]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0 and all(line.startswith(b"ii") for line in done.stdout.splitlines())


def _install_packages(packages: Sequence[str]) -> None:
    # a server that comes with one is not started: a test starts its own
    Path("/etc/postgresql-common").mkdir(exist_ok=True)
    with open("/etc/postgresql-common/createcluster.conf", "a") as settings:
        settings.write("create_main_cluster = false\n")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-q"], check=False, env=environment, capture_output=True)
    with no_service_is_started():
        command = ["apt-get", "install", "-qy", "--no-install-recommends", *packages]
        subprocess.run(command, check=False, env=environment, capture_output=True)


@contextlib.contextmanager
def no_service_is_started() -> Iterator[None]:
    """Debian asks this file whether a package that it installs may start its service."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            policy.unlink()


def wait_until(what: str, look: Callable[[], T], timeout_s: float = 20.0) -> T:
    """Look, often, until there is something to see; returns it."""
    timeout_s *= PATIENCE
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.01)
    return seen


def parse_record(done: subprocess.CompletedProcess[str]) -> ExecutionRecord:
    """The record that `--json` printed; fails with what was said on stderr if stdout holds anything else."""
    try:
        return record_from_json(done.stdout)
    except ValueError as error:
        _fail(done, f"stdout is no record: {error}")


def _fail(done: subprocess.CompletedProcess[str], why: str) -> NoReturn:
    pytest.fail(f"{why}\nforge exited with {done.returncode}\nstdout: {done.stdout[:2000]}\nstderr: {done.stderr[:2000]}")


class Forge:
    """The installed `forge` command, with `home` as its `FORGE_HOME`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        script = Path(sys.executable).with_name("forge")
        self.command = (str(script),) if script.exists() else (sys.executable, "-m", "forge_orchestration.cli.main")

    def __call__(
        self, *arguments: str | Path, timeout: float = _TIMEOUT_S, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; text that is not UTF-8 comes as surrogates. `env` is added to this process' environment."""
        return subprocess.run(
            [*self.command, *map(str, arguments)], env=self.environment(env), cwd=cwd, stdin=subprocess.DEVNULL,
            capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=timeout,
        )  # fmt: skip

    def record(self, *arguments: str | Path, timeout: float = _TIMEOUT_S, env: Mapping[str, str] | None = None) -> ExecutionRecord:
        """The record of `forge run|exec --json …`."""
        return parse_record(self(arguments[0], "--json", *arguments[1:], timeout=timeout, env=env))

    @contextlib.contextmanager
    def started(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
        """It runs, with pipes for stdout and stderr; killed if it still does at the end."""
        process = subprocess.Popen(
            [*self.command, *map(str, arguments)], env=self.environment(env), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="surrogateescape",
        )  # fmt: skip
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What the command gets."""
        return {**os.environ, "FORGE_HOME": str(self.home), **(more or {})}

    def executions(self) -> set[str]:
        """Ids of the executions that have a folder."""
        with contextlib.suppress(FileNotFoundError):
            return {name for name in os.listdir(self.home / "executions") if not name.startswith(".")}
        return set()

    def read_record(self, execution_id: str) -> ExecutionRecord:
        """The record in the execution's folder."""
        return record_from_json((self.home / "executions" / execution_id / "record.json").read_bytes())


@pytest.fixture(scope="session")
def forge_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `FORGE_HOME` for the whole session, in a path with a space and letters beyond ASCII, with `forge-python` built."""
    home = tmp_path_factory.mktemp("forge") / "forge home für tests"
    _homes.append(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORGE_HOME", str(home))
        # of all variables, a spawner and what it forks keep PATH: this is how they are told from those of other homes
        patch.setenv("PATH", f"{os.environ['PATH']}:{home}/bin")
        built = Forge(home)("runtimes", "build", RUNTIME, timeout=280)
        prerequisite(built.returncode != 3, f"this host cannot run sandboxes: {built.stderr.strip()}")
        if built.returncode != 0:
            _fail(built, f"runtime {RUNTIME} cannot be built")
        yield home


@pytest.fixture
def forge(forge_home: Path) -> Forge:
    """The `forge` command in `forge_home`."""
    return Forge(forge_home)


def copy_runtime(source: Path, home: Path, name: str = RUNTIME) -> None:
    """Put the build of a runtime that the home `source` has into another home; by now it may have large ones besides."""
    shutil.copytree(source / "runtimes" / name, home / "runtimes" / name, symlinks=True)


@pytest.fixture(scope="session")
def have_runtime(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Forge, str], None]:
    """Puts a runtime that ships into a home. The large ones take minutes: each is built once, for all workers of pytest's, and copied."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    shared = Forge(base / "home of built runtimes")

    def have(forge: Forge, name: str) -> None:
        if (forge.home / "runtimes" / name).exists():
            return
        with open(base / f"building {name}", "w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            built = shared("runtimes", "build", name, timeout=900 * PATIENCE)
        may_be_installed = "failed: " not in built.stderr or "self-test" in built.stderr
        prerequisite(may_be_installed, f"the runtime cannot be installed: {built.stderr}")
        assert built.returncode == 0, built.stderr
        (forge.home / "runtimes").mkdir(mode=0o700, exist_ok=True)
        subprocess.run(["cp", "-a", "--reflink=auto", shared.home / "runtimes" / name, forge.home / "runtimes"], check=True)

    _homes.append(shared.home)
    return have


@pytest.fixture
def other_forge(forge_home: Path, tmp_path: Path) -> Forge:
    """The `forge` command in a fresh home of its own, with the same built runtime, and settings that a test may write."""
    home = tmp_path / "another home"
    home.mkdir(mode=0o700)
    _homes.append(home)
    copy_runtime(forge_home, home)
    return Forge(home)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Set up before every other fixture, so that this looks when all of them are done."""
    yield
    close_own_spawners()
    deadline = time.monotonic() + _ENDING_S
    left = [one for home in _homes for one in leftovers(home)]
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = [one for home in _homes for one in leftovers(home)]
    if left:
        pytest.fail("left behind by this session:\n  " + "\n  ".join(left), pytrace=False)


def close_own_spawners() -> None:
    """A test that used `forge_orchestration.run` in this process made a spawner, which ends with this process or now."""
    if (local := sys.modules.get("forge_orchestration.executors.local")) is not None:
        for spawner in local.LocalExecutor._spawners.values():
            spawner.close()
        local.LocalExecutor._spawners.clear()


def leftovers(home: Path) -> list[str]:
    """What is there on this host, now, of executions in `home`: empty when none runs and all were cleaned up."""
    found = [f"process {pid}: {words}" for pid, words in _processes_naming(os.fsencode(home))]
    ids = _execution_ids(home)
    found += [f"supervisor of {one}" for one in ids if _has_supervisor(home, one)]
    found += [f"cgroup {path}" for path in _cgroups_named(ids | _run_ids(home))]
    with contextlib.suppress(FileNotFoundError):
        found += [f"scratch {name}" for name in os.listdir(home / "scratch") if name not in ("templates", "workspace")]
        found += [f"scratch workspace/{name}" for name in os.listdir(home / "scratch" / "workspace")]
    waiting = _mount_namespaces_of_standbys()
    found += [f"mount {line}" for namespace, line in _mounts_naming(os.fsencode(home)) if namespace not in waiting]
    reserved = {line.split(" - ")[1].split()[1] for namespace, line in _mounts_naming(os.fsencode(home)) if namespace in waiting}
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(os.fsencode(home)) and f"/dev/{path.parts[3]}" not in reserved:
                found.append(f"loop device {path.parts[3]}")
    with contextlib.suppress(OSError):
        for claim in Path("/run/forge/uids").iterdir():
            if (named := claim.read_bytes().decode(errors="replace")) in ids and named:
                found.append(f"claim on uid {claim.name} by {named}")
    return found + [f"place of {one} among those that run or wait" for one in _places(home) if one in ids]


def _places(home: Path) -> Iterator[str]:
    from forge_orchestration.errors import ForgeError
    from forge_orchestration.executors.admission import ledger_of
    from forge_orchestration.settings import load_settings

    with contextlib.suppress(ForgeError):  # a test may have broken its settings
        # what a killed process claims is dropped by whoever needs the room
        yield from (claim.execution_id for claim in ledger_of(load_settings(home)).read().claims if claim.is_held())


def _run_ids(home: Path) -> set[str]:
    """Of runs that were given a worker."""
    with contextlib.suppress(FileNotFoundError):
        return set(os.listdir(home / "dagster" / "workers"))
    return set()


def _execution_ids(home: Path) -> set[str]:
    """All that were ever seen: a test may remove its home."""
    ids = _executions.setdefault(home, set())
    ids |= Forge(home).executions()
    return ids


def is_own_tracker(pid: int) -> bool:
    """Whether it is the helper that Python's multiprocessing starts for this very process and ends with it: Dagster uses that here."""
    status = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(status[1]) == os.getpid() and b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _processes_naming(text: bytes) -> Iterator[tuple[int, str]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = Path(entry.path, "cmdline").read_bytes()
                # a zombie has neither; one of ours would be this process' own child, not the sandbox's
                if (text in words or text in Path(entry.path, "environ").read_bytes()) and not is_own_tracker(int(entry.name)):
                    yield int(entry.name), words.replace(b"\0", b" ").decode(errors="replace")[:200]


def _has_supervisor(home: Path, execution_id: str) -> bool:
    from forge_orchestration.errors import ForgeError
    from forge_orchestration.executions.folder import ExecutionFolder
    from forge_orchestration.sandbox.process_identity import read_supervisor

    with contextlib.suppress(OSError, ValueError, ForgeError):
        supervisor = read_supervisor(ExecutionFolder(home / "executions", execution_id))
        return supervisor is not None and supervisor.is_alive
    return False


def _cgroups_named(ids: set[str]) -> Iterator[str]:
    from forge_orchestration.sandbox.cgroups.find import cgroup_mounts

    legacy, unified = cgroup_mounts()
    for mount in dict.fromkeys([*legacy.values(), *([unified] if unified else [])]):
        for folder, children, _ in os.walk(mount):
            yield from (os.path.join(folder, name) for name in children if name in ids)


def _mount_namespaces_of_standbys() -> set[str]:
    """Of supervisors that live and have no execution yet: each controller that lives keeps one, with a workspace made ahead."""
    found = set()
    with contextlib.suppress(OSError):
        for claim in Path("/run/forge/uids").iterdir():
            words = claim.read_bytes().split()
            if words[:1] == [b"standby"]:
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{int(words[1])}/ns/mnt"))
    return found


def _mounts_naming(text: bytes) -> Iterator[tuple[str, str]]:
    """Namespace and line, in every mount namespace: that of a supervisor is its own."""
    escaped = text.replace(b"\\", b"\\134").replace(b" ", b"\\040").replace(b"\t", b"\\011").replace(b"\n", b"\\012")
    seen: set[str] = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                namespace = os.readlink(f"{entry.path}/ns/mnt")
                if namespace not in seen:
                    seen.add(namespace)
                    for line in Path(entry.path, "mountinfo").read_bytes().splitlines():
                        if escaped in line:
                            yield namespace, line.decode(errors="replace")
