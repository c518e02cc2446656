"""Small hostile programs, run from inside a sandbox. Each says what it tried and what came of it; none may succeed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# every attack is given `libc`, `syscall(number, *arguments)` → (result, errno name), and `said(**facts)`
PREAMBLE = """
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *[ctypes.c_long(one) if isinstance(one, int) else one for one in arguments])
    return result, errno.errorcode.get(ctypes.get_errno(), "ok")
def said(**facts):
    print(json.dumps(facts)); sys.stdout.flush()
def outcome(function, *arguments):
    try:
        return repr(function(*arguments))
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
"""

# number of the system call on x86_64, arguments, errors that count as a refusal
SYSTEM_CALLS = {
    "unshare_user": (272, (0x10000000,), {"EPERM"}),
    "unshare_mount": (272, (0x00020000,), {"EPERM"}),
    "setns": (308, (0, 0), {"EPERM"}),
    "clone_new_user": (56, (0x10000000 | 17, 0, 0, 0, 0), {"EPERM"}),
    "clone3": (435, (0, 0), {"ENOSYS"}),
    "mount": (165, (0, 0, 0, 0, 0), {"EPERM"}),
    "umount2": (166, (0, 0), {"EPERM"}),
    "pivot_root": (155, (0, 0), {"EPERM"}),
    "chroot": (161, (0,), {"EPERM"}),
    "move_mount": (429, (0, 0, 0, 0, 0), {"EPERM"}),
    "open_tree": (428, (0, 0, 0), {"EPERM"}),
    "fsopen": (430, (0, 0), {"EPERM"}),
    "ptrace": (101, (0, 0, 0, 0), {"EPERM"}),
    "process_vm_readv": (310, (1, 0, 0, 0, 0, 0), {"EPERM"}),
    "keyctl": (250, (0, 0, 0, 0, 0), {"EPERM"}),
    "add_key": (248, (0, 0, 0, 0, 0), {"EPERM"}),
    "request_key": (249, (0, 0, 0, 0), {"EPERM"}),
    "bpf": (321, (0, 0, 0), {"EPERM"}),
    "perf_event_open": (298, (0, 0, 0, 0, 0), {"EPERM"}),
    "userfaultfd": (323, (0,), {"EPERM"}),
    "io_uring_setup": (425, (1, 0), {"EPERM"}),
    "io_uring_enter": (426, (0, 0, 0, 0, 0, 0), {"EPERM"}),
    "kexec_load": (246, (0, 0, 0, 0), {"EPERM"}),
    "init_module": (175, (0, 0, 0), {"EPERM"}),
    "open_by_handle_at": (304, (0, 0, 0), {"EPERM"}),
    "swapon": (167, (0, 0), {"EPERM"}),
    "reboot": (169, (0, 0, 0, 0), {"EPERM"}),
    "quotactl": (179, (0, 0, 0, 0), {"EPERM"}),
    "tiocsti": (16, (0, 0x5412, 0), {"EPERM"}),
    "tiocsti_high_bits": (16, (0, 0x5412 | 1 << 32, 0), {"EPERM"}),
    "tioclinux": (16, (0, 0x541C, 0), {"EPERM"}),
    "socket_vsock": (41, (40, 1, 0), {"EPERM"}),
    "socket_packet": (41, (17, 3, 0), {"EPERM"}),
    "socket_alg": (41, (38, 5, 0), {"EPERM"}),
    "socket_netlink_audit": (41, (16, 3, 9), {"EPERM"}),
}


def attack(forge, code: str, *options: str) -> list[dict]:
    """Run `code` in a sandbox; what it said, line by line."""
    done = forge(
        "exec", "--memory", "256MiB", "--scratch", "32MiB", *options, "--", "python", "-c", PREAMBLE + textwrap.dedent(code)
    )
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_refused_system_calls(forge_home: Path, forge) -> None:
    calls = {name: (number, arguments) for name, (number, arguments, _) in SYSTEM_CALLS.items()}
    code = f"for name, (number, arguments) in {calls!r}.items(): said(name=name, result=syscall(number, *arguments))"
    results = {line["name"]: tuple(line["result"]) for line in attack(forge, code)}
    assert set(results) == set(SYSTEM_CALLS)
    for name, (_, _, refusals) in SYSTEM_CALLS.items():
        assert results[name][0] == -1 and results[name][1] in refusals, (name, results[name])


def test_a_foreign_architecture_ends_the_program(forge_home: Path, forge) -> None:
    # int 0x80 from 64-bit code is a 32-bit call: getpid (20); run from an anonymous mapping
    code = """
    import mmap
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes([0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3]))
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    said(before=True)
    said(pid=ctypes.CFUNCTYPE(ctypes.c_int)(address)())
    """
    done = forge("exec", "--", "python", "-c", PREAMBLE + textwrap.dedent(code))
    assert '"before": true' in done.stdout and "pid" not in done.stdout
    assert done.returncode == 1 and "SIGSYS" in done.stderr


def test_who_it_is(forge_home: Path, forge) -> None:
    code = """
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    said(uid=os.getuid(), gid=os.getgid(), groups=os.getgroups(), **{name: status[name].strip() for name in
         ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")})
    said(session=os.getsid(0), tty=outcome(os.open, "/dev/tty", os.O_RDWR), setuid=outcome(os.setuid, 0), host=os.uname().nodename)
    """
    who, more = attack(forge, code)
    nothing = "0" * 16
    assert [who[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [nothing] * 4
    assert (who["NoNewPrivs"], who["Seccomp"]) == ("1", "2")
    # an ordinary user's group is also the only one that its namespace maps
    assert who["groups"] == ([] if os.geteuid() == 0 else [os.getgid()])
    assert who["uid"] != 0
    if os.geteuid() == 0:
        assert who["CapBnd"] == nothing
        assert who["uid"] >= 1_879_000_000
    # in a user namespace there is no uid 0 that it could become
    assert more["tty"] == "ENXIO" and more["setuid"] in {"EPERM", "EINVAL"} and more["host"] == "forge"


def test_each_execution_has_a_uid_of_its_own_while_it_runs(forge_home: Path, forge) -> None:
    if os.geteuid() != 0:
        pytest.skip("own uids need root")
    command = [sys.executable, "-m", "forge_orchestration.cli.main", "exec", "--", "sh", "-c", "id -u; sleep 1"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    uids = [process.communicate(timeout=60)[0].strip() for process in running]
    assert len(set(uids)) == 6


def test_what_it_cannot_see(forge_home: Path, forge) -> None:
    paths = [
        "/etc/shadow", "/etc/machine-id", "/run", "/var", "/home", "/sys", "/boot", "/root/.ssh", "/root/.bashrc", str(forge_home / "store.db"),
        str(forge_home / "executions"), str(forge_home / "settings.toml"), "/proc/kcore", "/dev/mem", "/dev/loop0", "/dev/fuse", "/dev/kvm",
        "/var/run/docker.sock", "/run/dbus/system_bus_socket",
    ]  # fmt: skip
    code = f"""
    for path in {paths!r}:
        said(path=path, stat=outcome(lambda: os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)))
    said(processes=sorted(name for name in os.listdir("/proc") if name.isdigit()))
    said(root=sorted(os.listdir("/")))
    """
    *seen, processes, root = attack(forge, code)
    for one in seen:
        assert one["stat"] in {"ENOENT", "EACCES", "EPERM"}, one
    assert len(processes["processes"]) == 3  # the program itself, and bubblewrap's inner process with its placeholder
    assert not {"run", "var", "home", "sys", "boot", "srv", "mnt"} & set(root["root"])


def test_what_it_cannot_write(forge_home: Path, forge, tmp_path: Path) -> None:
    data = forge_home.parent / "data.txt"
    data.write_text("as it was")
    data.chmod(0o666)
    code = """
    for path in ("/x", "/usr/x", "/etc/x", "/etc/passwd", "/forge/x", "/forge/inputs/x", "/forge/inputs/data", "/forge/analysis/x",
                 "/forge/runtime/x", "/forge/runtime/bin/python", "/forge/params.json", "/forge/README", "/proc/sys/kernel/hostname"):
        said(path=path, result=outcome(lambda: open(path, "a").write("x")))
    said(path="link", result=outcome(os.link, "/forge/inputs/data", "/forge/scratch/hard"))
    said(path="fd", result=outcome(lambda: os.open(f"/proc/self/fd/{os.open('/forge/inputs/data', os.O_RDONLY)}", os.O_RDWR)))
    said(path="chmod", result=outcome(os.chmod, "/forge/inputs/data", 0o777))
    said(path="remove", result=outcome(os.unlink, "/forge/inputs/data"))
    """
    for one in attack(forge, code, "--input", f"data={data}"):
        assert one["result"] in {"EROFS", "EACCES", "EPERM", "EXDEV", "EISDIR", "ENOENT"}, one
    assert data.read_text() == "as it was"


def test_what_it_cannot_reach(forge_home: Path, forge) -> None:
    named = forge_home.parent / "host.sock"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        abstract.bind(f"\0forge-test-{os.getpid()}")
        abstract.listen()
        unix.bind(str(named))
        unix.listen()
        named.chmod(0o777)
        code = f"""
        def connect(family, address):
            with socket.socket(family) as one:
                one.settimeout(2)
                one.connect(address)
        said(what="loopback of the host", result=outcome(connect, socket.AF_INET, ("127.0.0.1", {tcp.getsockname()[1]})))
        said(what="outside", result=outcome(connect, socket.AF_INET, ("192.0.2.1", 80)))
        said(what="abstract", result=outcome(connect, socket.AF_UNIX, "\\0forge-test-{os.getpid()}"))
        said(what="named", result=outcome(connect, socket.AF_UNIX, {str(named)!r}))
        said(what="interfaces", result=[name for _, name in socket.if_nameindex()])
        """
        *refused, interfaces = attack(forge, code)
    for one in refused:
        assert one["result"] in {"ECONNREFUSED", "ENETUNREACH", "ENOENT", "EACCES"}, one
    assert interfaces["result"] == ["lo"]


def test_its_environment_is_built_from_nothing(forge_home: Path, forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret of the host")
    monkeypatch.setenv("LD_LIBRARY_PATH_OF_HOST", "x")
    (seen,) = attack(forge, "said(**os.environ)")
    assert "AWS_SECRET_ACCESS_KEY" not in seen and "DAGSTER_HOME" not in seen and "FORGE_HOME" not in seen
    assert "secret" not in json.dumps(seen)
    assert seen["HOME"] == seen["TMPDIR"] == "/forge/scratch"


def test_a_declared_preload_is_not_loaded_into_what_has_privileges(forge_home: Path, forge) -> None:
    # a library that does not exist makes the loader complain in every program that it is loaded into
    done = forge("exec", "--env", "LD_PRELOAD=/forge/scratch/evil.so", "--", "python", "-c", "print('ran')")
    assert done.stdout == "ran\n"
    assert done.stderr.count("evil.so") == 1  # the command itself, and neither bwrap, setpriv nor env


def test_nothing_outlives_its_execution(forge_home: Path, forge) -> None:
    code = """
    import subprocess, signal
    mark = "forge-outlive-" + sys.argv[1]
    for shell in ("sleep 300", "trap '' TERM HUP; sleep 300", "kill -STOP $$"):
        subprocess.Popen(["setsid", "sh", "-c", shell + " # " + mark], start_new_session=True,
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(0); os.close(1); os.close(2)
            import time; time.sleep(300)
        os._exit(0)
    said(started=len([name for name in os.listdir("/proc") if name.isdigit()]))
    """
    mark = os.urandom(6).hex()
    done = forge("exec", "--", "python", "-c", PREAMBLE + textwrap.dedent(code), mark)
    assert json.loads(done.stdout)["started"] >= 5
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            assert f"forge-outlive-{mark}" not in words and mark not in words


def test_numba_like_programs_keep_working(forge_home: Path, forge) -> None:
    """Multiprocessing, threads, shared memory, signals, executable mappings, and listing interfaces are no attack."""
    code = """
    import multiprocessing, multiprocessing.shared_memory, threading, mmap, concurrent.futures
    block = multiprocessing.shared_memory.SharedMemory(create=True, size=1 << 20); block.buf[0] = 7
    with concurrent.futures.ThreadPoolExecutor(4) as pool: threads = list(pool.map(abs, [-1, -2]))
    with multiprocessing.get_context("fork").Pool(2) as pool: forked = pool.map(abs, [-3, -4])
    with multiprocessing.get_context("fork").Manager() as manager: managed = list(manager.list([5]))
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    block.close(); block.unlink()
    said(threads=threads, forked=forked, managed=managed)
    """
    (line,) = attack(forge, code)
    assert line == {"threads": [1, 2], "forked": [3, 4], "managed": [5]}
