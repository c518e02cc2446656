"""Attacks that get out: mounts, namespaces, privileges, tracing, devices, foreign system calls, and what runs too early."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import forge_orchestration
from forge_orchestration_tests.conftest import Forge, prerequisite
from forge_orchestration_tests.security.arena import AS_ROOT, LIMITS, OWN_UIDS, Arena, Outcome

ABSENT = ("ENOENT", "EPERM", "EACCES")
REFUSED: dict[str, tuple[str, ...]] = {
    "mounts": ("EPERM",),
    "new_mount_calls": ("EPERM",),
    "roots": ("EPERM", "ENOENT"),
    "new_namespaces": ("EPERM", "ENOSYS"),  # clone3 is reported as missing
    "tracing": ("EPERM",),
    "release_agent": ABSENT,
    "loop_devices": (*ABSENT, "ENOTTY"),
    "device_nodes": ABSENT,
    "file_capabilities": ("EPERM",),
    "io_rings": ABSENT,
    "kernel_programs": ("EPERM",),
    "kernel_modules": ("EPERM",),
    "foreign_numbers": ("ENOSYS",),
}
# which of an attack's calls the filter has refused, and the record therefore counts; those of others did not come so far
COUNTED: dict[str, tuple[str, ...]] = {
    "mounts": ("mount", "umount2"),
    "new_mount_calls": ("fsopen", "fsconfig", "fsmount", "fspick", "open_tree", "open_tree_attr", "move_mount", "mount_setattr"),
    "roots": ("chroot", "pivot_root"),
    "new_namespaces": ("unshare", "clone"),
    "tracing": ("ptrace", "kcmp", "process_vm_writev"),
    "release_agent": ("mount", "unshare"),
    "io_rings": ("io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd"),
    "kernel_programs": ("bpf", "perf_event_open"),
    "kernel_modules": ("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load"),
}

# number of the call on x86_64, and arguments that any kernel without a filter would look at before it looked at privileges
SYSTEM_CALLS: dict[str, tuple[int, list[int]]] = {
    "unshare": (272, [0x10000000]), "setns": (308, [0, 0]), "clone, new user": (56, [0x10000000 | 17, 0, 0, 0, 0]),
    "clone, new network": (56, [0x40000000 | 17, 0, 0, 0, 0]), "clone, sibling": (56, [0x8000 | 17, 0, 0, 0, 0]),
    "clone3": (435, [0, 0]),
    "mount": (165, [0, 0, 0, 0, 0]), "umount2": (166, [0, 0]), "pivot_root": (155, [0, 0]), "chroot": (161, [0]),
    "move_mount": (429, [0, 0, 0, 0, 0]), "open_tree": (428, [0, 0, 0]), "fsopen": (430, [0, 0]),
    "fsconfig": (431, [0, 0, 0, 0, 0]), "fsmount": (432, [0, 0, 0]), "fspick": (433, [0, 0, 0]),
    "mount_setattr": (442, [0, 0, 0, 0, 0]), "swapon": (167, [0, 0]),
    "swapoff": (168, [0]), "quotactl": (179, [0, 0, 0, 0]), "quotactl_fd": (443, [0, 0, 0, 0]),
    "ptrace": (101, [0, 0, 0, 0]), "process_vm_readv": (310, [1, 0, 0, 0, 0, 0]), "process_vm_writev": (311, [1, 0, 0, 0, 0, 0]),
    "process_madvise": (440, [0, 0, 0, 0, 0]), "pidfd_getfd": (438, [0, 0, 0]), "kcmp": (312, [1, 1, 0, 0, 0]),
    "keyctl": (250, [0, 0, 0, 0, 0]), "add_key": (248, [0, 0, 0, 0, 0]), "request_key": (249, [0, 0, 0, 0]),
    "bpf": (321, [0, 0, 0]), "perf_event_open": (298, [0, 0, 0, 0, 0]), "userfaultfd": (323, [0]), "io_uring_setup": (425, [1, 0]),
    "io_uring_enter": (426, [0, 0, 0, 0, 0, 0]), "io_uring_register": (427, [0, 0, 0, 0]),
    "kexec_load": (246, [0, 0, 0, 0]), "kexec_file_load": (320, [0, 0, 0, 0, 0]), "init_module": (175, [0, 0, 0]),
    "finit_module": (313, [0, 0, 0]), "delete_module": (176, [0, 0]), "reboot": (169, [0, 0, 0, 0]), "iopl": (172, [0]),
    "ioperm": (173, [0, 0, 0]), "settimeofday": (164, [0, 0]), "clock_settime": (227, [0, 0]), "adjtimex": (159, [0]),
    "clock_adjtime": (305, [0, 0]), "syslog": (103, [10, 0, 0]), "acct": (163, [0]), "sethostname": (170, [0, 0]),
    "setdomainname": (171, [0, 0]), "vhangup": (153, []), "lookup_dcookie": (212, [0, 0, 0]), "nfsservctl": (180, [0, 0, 0]),
    "open_by_handle_at": (304, [0, 0, 0]), "name_to_handle_at": (303, [0, 0, 0, 0, 0]), "fanotify_init": (300, [0, 0]),
    "ioctl, TIOCSTI": (16, [0, 0x5412, 0]), "ioctl, TIOCSTI with high bits": (16, [0, 0x5412 | 1 << 32, 0]),
    "ioctl, TIOCLINUX": (16, [0, 0x541C, 0]), "ioctl, TIOCLINUX with high bits": (16, [0, 0x541C | 1 << 40, 0]),
    "io_setup": (206, [1, 0]), "modify_ldt": (154, [0, 0, 0]), "uselib": (134, [0]), "sched_setattr": (314, [0, 0, 0]),
    "sched_setscheduler": (144, [0, 0, 0]), "sched_setparam": (142, [0, 0]), "socket, vsock": (41, [40, 1, 0]), "socket, packet": (41, [17, 3, 0]),
    "socket, alg": (41, [38, 5, 0]), "socket, audit": (41, [16, 3, 9]),
}  # fmt: skip


@pytest.fixture(scope="module")
def system_calls(arena: Arena) -> Outcome:
    """All of them, in one execution."""
    return arena.run("escape/system_calls", system_calls=SYSTEM_CALLS)


@pytest.mark.parametrize("call", SYSTEM_CALLS)
def test_refused_system_call(system_calls: Outcome, call: str) -> None:
    assert system_calls.finished, system_calls
    assert system_calls.errors()[call] == ("ENOSYS" if call == "clone3" else "EPERM"), system_calls
    system_calls.assert_ended("completed")


def test_refused_system_calls_are_counted(system_calls: Outcome) -> None:
    """Each of them once; that there is no clone3 is not a refusal."""
    names = [call.partition(",")[0] for call in SYSTEM_CALLS if call != "clone3"]
    system_calls.assert_counted(*names)
    assert system_calls.record.violations == Counter(names) and system_calls.record.suspect, system_calls


@pytest.mark.parametrize("name", REFUSED)
def test_refused(arena: Arena, name: str) -> None:
    outcome = arena.run(f"escape/{name}")
    outcome.assert_refused(*REFUSED[name])
    outcome.assert_counted(*COUNTED.get(name, ()))
    outcome.assert_ended("completed")
    for effect in ("mounted", "effective"):
        assert outcome.facts.get(effect) in (None, [], ["CapEff:", "0" * 16]), outcome


def test_terminal_input(arena: Arena) -> None:
    """There is no terminal to type into, and the calls are refused before anybody looks at what they are made on."""
    outcome = arena.run("escape/terminal_input")
    absent: dict[str, str | None] = {"own terminal": "ENOENT", "the console": "ENOENT", "of its session": "ENXIO"}
    outcome.assert_refused("EPERM", but=absent)
    outcome.assert_counted("ioctl")
    assert outcome.record.violations == {"ioctl": 16} and len(outcome.attempts) == 16 + len(absent), outcome
    outcome.assert_ended("completed")


def test_raised_limits(arena: Arena) -> None:
    outcome = arena.run("escape/raised_limits")
    # the limit on core files alone says that it was set, and stays as it was
    pretended: dict[str, str | None] = {"limit CORE": None, "limit CORE, the older way": None}
    outcome.assert_refused("EPERM", "EACCES", but=pretended)
    assert outcome.facts["core"] == [1, 1], outcome
    outcome.assert_counted("sched_setscheduler", "sched_setattr")
    outcome.assert_ended("completed")


@pytest.mark.parametrize("name", ["foreign_int80", "foreign_x32", "foreign_segment"])
def test_foreign_architecture(arena: Arena, name: str) -> None:
    """A call of another architecture ends the program at once: the numbers of the filter would mean other calls there."""
    outcome = arena.run(f"escape/{name}")
    assert [one.attempt for one in outcome.attempts] == ["about to"] and not outcome.finished, outcome
    outcome.assert_ended("signaled")
    assert "SIGSYS" in outcome.record.message and outcome.record.signal == 31


def test_joining_namespaces(arena: Arena) -> None:
    outcome = arena.run("escape/join_namespaces")
    outcome.assert_refused(*ABSENT, "ESRCH", but={"pidfd": None})
    outcome.assert_counted("setns", "pidfd_getfd")
    outcome.assert_ended("completed")


def test_credentials(arena: Arena) -> None:
    outcome = arena.run("escape/credentials")
    outcome.assert_refused("EPERM", "EINVAL")
    status = {str(line[0]).rstrip(":"): line[1:] for line in outcome.facts["status"]}  # type: ignore[attr-defined]
    assert set(status["Uid"]) == {str(outcome.facts["fsuid"])} and outcome.facts["fsuid"] != 0, outcome
    if OWN_UIDS:
        assert outcome.record.isolation is not None
        uid = outcome.record.isolation.uid
        # what root has set aside for a user has small numbers inside
        assert (outcome.facts["fsuid"] == uid >= 1_879_000_000) if AS_ROOT else (0 < outcome.facts["fsuid"] < uid), outcome
        assert status["CapBnd"] == ["0" * 16]
    assert [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [["0" * 16]] * 4
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    assert outcome.facts["host"] == "forge" and outcome.facts["session"] != 0, outcome
    outcome.assert_ended("completed")


def test_set_uid_programs(arena: Arena) -> None:
    outcome = arena.run("escape/set_uid_programs")
    bits = {what: None for what in outcome.errors() if what.startswith("set-uid bit")}
    outcome.assert_refused("EPERM", "EINVAL", but=bits)  # it may set the bit on what is its own: it has no effect
    who = outcome.facts["who"]
    assert isinstance(who, list) and any("su" in program for program, *_ in who), outcome
    own = next(uid for _, uid, _ in who if uid != "ended")
    assert outcome.record.isolation is not None and own != "0", outcome
    assert own == str(outcome.record.isolation.uid) or outcome.record.isolation.mode == "subordinate_uid", outcome
    assert {(uid, capabilities) for _, uid, capabilities in who if uid != "ended"} == {(own, "0" * 16)}, outcome
    copies = [one["said"] for one in outcome.said if "copy" in one]
    assert copies == [["Uid:", own, own, own, own, "CapEff:", "0" * 16]] * 4, outcome
    assert not (Path(outcome.record.folder, "outputs", "python").stat().st_mode & 0o6000)
    outcome.assert_ended("completed")


def test_fuse(arena: Arena) -> None:
    outcome = arena.run("escape/fuse")
    outcome.assert_refused(*ABSENT)
    assert outcome.facts["mounted"] == [] and all(one["status"] != 0 for one in outcome.said if "helper" in one), outcome
    outcome.assert_ended("completed")


def test_a_filter_of_its_own(arena: Arena) -> None:
    outcome = arena.run("escape/own_filter")
    outcome.assert_refused("EPERM")
    assert outcome.record.violations == {"seccomp": 4, "mount": 4, "unshare": 1, "prctl": 2}, outcome
    outcome.assert_ended("completed")


def test_overwritten_programs(arena: Arena) -> None:
    outcome = arena.run("escape/overwritten_programs")
    readable = {
        what: error for what, error in outcome.errors().items() if what.startswith("open") and ("self" in what or not AS_ROOT)
    }
    outcome.assert_refused("EACCES", "EPERM", "EROFS", "ETXTBSY", "ENOENT", but=readable)
    outcome.assert_ended("completed")


def test_killing_everybody(arena: Arena) -> None:
    outcome = arena.run("escape/kills_everybody")
    for what, error in outcome.errors().items():
        if what.endswith("_pid") or what.startswith("neighbour"):
            assert error == "ESRCH", outcome
    if OWN_UIDS:
        assert len(outcome.attempts) >= 6 and outcome.finished, outcome  # itself, it had told to ignore the signal
        outcome.assert_ended("completed")
    else:  # bubblewrap's own command is the same user's: whoever ends that ends the sandbox, and all that is in it
        assert len(outcome.attempts) >= 5, outcome
        outcome.assert_ended("signaled")


def test_the_hosts_tools(arena: Arena) -> None:
    outcome = arena.run("escape/host_tools")
    tried = {str(one["tool"]): one["status"] for one in outcome.said if "tool" in one and one["status"] is not None}
    assert outcome.finished and {"mount", "chroot", "unshare", "nsenter"} & tried.keys(), outcome
    # the two that say nothing of their failure: nobody is logged in inside, and there is no journal
    worked = {name for name, status in tried.items() if status == 0} - {"wall", "journalctl"}
    assert worked == set(), outcome
    outcome.assert_ended("completed")


PRELOADS = {
    "LD_PRELOAD": "/forge/inputs/data",
    "LD_AUDIT": "/forge/inputs/data",
    "LD_PRELOAD of scratch": "/forge/scratch/harm.so",
}


@pytest.mark.parametrize("form", PRELOADS)
def test_declared_library(arena: Arena, form: str) -> None:
    """The loader complains of a library that is none in every program into which it should be loaded: once, and not before."""
    outcome = arena.run(
        "escape/foreign_numbers", env={form.split()[0]: PRELOADS[form]}, command=["python", "-c", "print('ran')"]
    )  # fmt: skip
    assert outcome.logs["stdout"] == b"ran\n"
    assert outcome.logs["stderr"].count(PRELOADS[form].encode()) == 1, outcome  # neither bwrap, setpriv nor env
    outcome.assert_ended("completed")


def test_a_declared_library_path(arena: Arena) -> None:
    """A folder with a C library that is none: every program that looks there cannot start."""
    library = arena.canaries.inputs / "libc.so.6"
    library.write_text("no library")
    outcome = arena.run(
        "escape/foreign_numbers", env={"LD_LIBRARY_PATH": "/forge/inputs/folder"}, command=["/usr/bin/id"], tidy=library.unlink
    )  # fmt: skip
    # it is the command that cannot be started, by env, which itself has started: the privileges are gone
    assert b"/usr/bin/id: error while loading shared libraries" in outcome.logs["stderr"], outcome
    outcome.assert_ended("nonzero_exit")


def test_declared_start_up_files(arena: Arena) -> None:
    """Variables that make a shell or an interpreter run a file first are for the command alone."""
    script = arena.canaries.inputs / "first.sh"
    script.write_text("id -u >&2\n")
    variables = dict.fromkeys(("BASH_ENV", "ENV", "PYTHONSTARTUP", "PERL5OPT"), "/forge/inputs/folder/first.sh")
    outcome = arena.run("escape/foreign_numbers", env=variables, command=["bash", "-c", "id -u"], tidy=script.unlink)
    said = outcome.logs["stderr"].split()
    assert said == outcome.logs["stdout"].split() and len(said) == 1 and said != [b"0"], outcome
    outcome.assert_ended("completed")


def test_each_execution_has_a_uid_of_its_own(arena: Arena, forge: Forge) -> None:
    if not OWN_UIDS:
        pytest.skip("own uids need root, or uids that root has set aside")
    words = ("exec", *(word for name in ("memory", "scratch") for word in (f"--{name}", LIMITS[name])), "--")
    running = [
        subprocess.Popen(
            [*forge.command, *words, "sh", "-c", "id -u; sleep 1"], env=forge.environment(), stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    uids = [process.communicate(timeout=60)[0].strip() for process in running]
    assert len(set(uids)) == 4 and all(int(uid) >= (1_879_000_000 if AS_ROOT else 1) for uid in uids)


REPOSITORIES = {
    "a monitor": "[core]\n\tfsmonitor = \"touch '{ran}'; false\"\n",
    "a filter": '[filter "harm"]\n\tclean = "touch \'{ran}\'; cat"\n',
}


@pytest.mark.parametrize("form", REPOSITORIES)
def test_a_hostile_repository(arena: Arena, tmp_path: Path, form: str) -> None:
    """An analysis' folder is a git repository whose configuration names a program; Forge asks git about the folder, outside."""
    prerequisite(shutil.which("git"), "git is not installed")
    folder = tmp_path / "analysis"
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    (folder / "analysis.yaml").write_text("description: hostile\nruntime: forge-python\ncommand: [python, attack.py]\n")
    (folder / "attack.py").write_text("print('outside')\n")
    (folder / ".gitattributes").write_text("* filter=harm\n")
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "x"], check=True)
    (folder / "attack.py").write_text("print('inside')\n")  # of another size: git has to look into it
    ran = tmp_path / "ran outside"
    with open(folder / ".git" / "config", "a") as file:
        file.write(REPOSITORIES[form].format(ran=ran))
    beats = arena.neighbour.beats()
    record = forge_orchestration.run(str(folder), limits=LIMITS, cache="off")
    arena.look_around(record, beats)
    assert arena.outcome(record).logs["stdout"] == b"inside\n"
    assert not ran.exists(), "a program that the repository names has run on the host, as the user who runs Forge"
