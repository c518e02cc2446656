"""bubblewrap's command line: what must be in it, what must never be, and the checks of what stands before the command starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.errors import HostError, SandboxError
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.sections import IdentitySettings, MessageSettings, OutputSettings, SupervisionSettings
from forge_orchestration.sandbox import bubblewrap, view
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.entry import Launch, last_words
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.plan import Bind, LaunchPlan

OWN_UID = Identity(mode="own_uid", uid=1_879_000_001, gid=1_879_000_001)
USER = Identity(mode="user_namespace", uid=1000, gid=1000)
HOSTILE = {
    "LD_PRELOAD": "/forge/inputs/evil.so", "LD_LIBRARY_PATH": "/forge/inputs", "LD_AUDIT": "/forge/inputs/evil.so",
    "GCONV_PATH": "/forge/inputs", "BASH_ENV": "/forge/inputs/x", "A": "--not an option", "B": "a\nb", "C": "ö'\"",
}  # fmt: skip
COMMAND = ("--share-net", "-x", "a\nb", "", "ö'")


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    return LaunchPlan(
    analysis="a",
        execution_id="20260102T030405678-9f86d081", folder=str(tmp_path / "fol der"), scratch_dir=str(tmp_path), bubblewrap="/usr/bin/bwrap", command=COMMAND, environment={"PATH": "/usr/bin", **HOSTILE},
        limits=Limits(memory_bytes=123 * 2**20), system_binds=("/usr", "/etc/fonts"), system_links={"/bin": "usr/bin"},
        binds=(Bind(source="/host/runtime", target="/forge/runtime", device=1, inode=2),
               Bind(source="/host/--unshare-none", target="/forge/inputs/x", device=1, inode=3)),
        outputs={}, parameters_json="{}", cgroup=CgroupSite(version=2, mounts={"unified": "/c"}, parent="p"),
        identity=IdentitySettings(), messages=MessageSettings(), output_caps=OutputSettings(), supervision=SupervisionSettings(),
    )  # fmt: skip


@pytest.fixture(params=[OWN_UID, USER], ids=lambda identity: identity.mode)
def identity(request: pytest.FixtureRequest) -> Identity:
    return request.param


def arguments(plan: LaunchPlan, identity: Identity) -> list[str]:
    files = {view.PARAMS: 10, "/etc/passwd": 11, view.README: 12}
    return bubblewrap.arguments(
        plan, identity, workspace="/work-ö", messages="/work-ö/messages", files=files, status_fd=21, block_fd=22
    )


def pairs(argv: list[str], option: str, count: int = 2) -> list[tuple[str, ...]]:
    return [tuple(argv[at + 1 : at + 1 + count]) for at, word in enumerate(argv) if word == option]


def test_every_namespace_is_its_own(plan: LaunchPlan, identity: Identity) -> None:
    own = arguments(plan, identity)
    assert {"--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"} <= set(own)
    assert not {"--share-net", "--unshare-all", "--unshare-user-try", "--unshare-cgroup-try"} & set(own)
    assert ("--unshare-user" in own) is (identity is USER)


def test_ties_and_terminals(plan: LaunchPlan, identity: Identity) -> None:
    assert {"--die-with-parent", "--new-session"} <= set(arguments(plan, identity))


def test_no_capability_is_kept(plan: LaunchPlan, identity: Identity) -> None:
    own = arguments(plan, identity)
    assert pairs(own, "--cap-drop", 1) == [("ALL",)] and "--cap-add" not in own


def test_nothing_of_the_analysis_reaches_bubblewrap(plan: LaunchPlan, identity: Identity) -> None:
    """It mounts with privileges: neither a variable nor a word of the command is among its arguments."""
    argv = arguments(plan, identity)
    assert "--clearenv" in argv and "--setenv" not in argv
    assert not [
        word
        for word in argv
        for name, value in HOSTILE.items()
        if f"{name}=" in word or value == word
        if not value.startswith("/forge")
    ]
    assert "--share-net" not in argv and "--" not in argv


def test_only_the_workspace_and_the_message_pipe_can_be_written(plan: LaunchPlan, identity: Identity) -> None:
    argv = arguments(plan, identity)
    assert dict(reversed(pair) for pair in pairs(argv, "--bind")) == {
        view.SCRATCH: "/work-ö/scratch", view.OUTPUTS: "/work-ö/outputs",
        view.CHECKPOINT: "/work-ö/checkpoint", "/tmp": "/work-ö/tmp",
        view.MESSAGES: "/work-ö/messages",
    }  # fmt: skip
    assert not {"--bind-try", "--overlay", "--dev"} & set(argv)
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    assert set(pairs(argv, "--dev-bind")) == {(device, device) for device in devices}
    read_only = pairs(argv, "--ro-bind")
    for bind in plan.binds:
        assert (bind.source, bind.target) in read_only


def test_the_root_is_read_only_once_everything_is_in_it(plan: LaunchPlan, identity: Identity) -> None:
    own = arguments(plan, identity)
    assert pairs(own, "--remount-ro", 1) == [("/dev",), ("/",)]
    remount = len(own) - 1 - own[::-1].index("--remount-ro")
    mounts = [
        at for at, word in enumerate(own) if word in ("--bind", "--ro-bind", "--tmpfs", "--proc", "--dev", "--file", "--symlink")
    ]
    assert max(mounts) < remount
    assert own[-2:] == ["--block-fd", "22"]


def test_of_the_host_only_the_short_list_is_there(plan: LaunchPlan, identity: Identity) -> None:
    argv = arguments(plan, identity)
    sources = {source for source, _ in pairs(argv, "--ro-bind")}
    assert sources <= {"/usr", "/etc/fonts", "/dev/null", "/host/runtime", "/host/--unshare-none"}
    assert not {"/", "/etc", "/run", "/var", "/home", "/root", "/proc", "/sys", "/dev"} & sources


def test_shared_memory_is_limited_by_the_memory_limit(plan: LaunchPlan, identity: Identity) -> None:
    argv = arguments(plan, identity)
    at = argv.index("/dev/shm")
    assert argv[at - 5 : at] == ["--perms", "1777", "--size", str(123 * 2**20), "--tmpfs"]


def test_folders_above_a_mount_can_be_entered_by_another_uid(plan: LaunchPlan, identity: Identity) -> None:
    argv = arguments(plan, identity)
    made = {argv[at + 3] for at, word in enumerate(argv) if word == "--perms" and argv[at + 1 : at + 3] == ["0755", "--dir"]}
    assert {"/forge", "/forge/inputs", "/forge/analysis"} <= made


class TestFind:
    def test_it_is_found_by_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "bwrap").touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert bubblewrap.find_bubblewrap() == str(tmp_path / "bwrap")

    def test_without_it_there_is_a_sentence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(HostError, match="not installed") as caught:
            bubblewrap.find_bubblewrap()
        assert "apt-get install bubblewrap" in caught.value.hint


class TestView:
    def test_the_hosts_system_folders_and_no_others(self) -> None:
        binds, links = view.system_view()
        assert binds[0] == "/usr"
        assert {os.path.dirname(path) for path in binds} <= {"/", "/etc"}
        assert not set(binds) & {
            "/",
            "/etc",
            "/run",
            "/home",
            "/root",
            "/var",
            "/opt",
            "/srv",
            "/tmp",
            "/boot",
            "/sys",
            "/proc",
            "/dev",
        }
        assert not set(binds) & {"/etc/passwd", "/etc/shadow", "/etc/ssh", "/etc/ssl", "/etc/hosts", "/etc/resolv.conf"}
        assert all(not target.startswith("/") or target.startswith("/usr") for target in links.values())

    def test_the_environment_is_built_from_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
        made = view.environment(activation={"PATH": "/forge/runtime/bin"}, declared={"X": "1"}, seed=7, threads=3, deadline=1.5)
        assert "SECRET_OF_THE_HOST" not in made
        assert made["PATH"] == "/forge/runtime/bin:/usr/local/bin:/usr/bin:/bin"
        assert (made["X"], made["FORGE_SEED"], made["OMP_NUM_THREADS"], made["FORGE_DEADLINE"]) == ("1", "7", "3", "1.500")
        assert {made[name] for name in ("HOME", "TMPDIR", "FORGE_SCRATCH")} == {view.SCRATCH}
        assert (made["TZ"], made["LC_ALL"]) == ("UTC", "C.UTF-8")

    def test_forges_own_variables_always_hold(self) -> None:
        declared = {"FORGE_OUTPUTS": "/x", "HOME": "/root", "TMPDIR": "/x", "USER": "root", "FORGE_SEED": "9"}
        made = view.environment(activation={"FORGE_SEED": "8"}, declared=declared, seed=7, threads=1, deadline=0)
        assert (made["FORGE_OUTPUTS"], made["HOME"], made["USER"], made["FORGE_SEED"]) == (view.OUTPUTS, view.SCRATCH, "forge", "7")

    def test_threads_may_be_declared_otherwise(self) -> None:
        made = view.environment(activation={}, declared={"OMP_NUM_THREADS": "9"}, seed=0, threads=1, deadline=0)
        assert made["OMP_NUM_THREADS"] == "9" and made["MKL_NUM_THREADS"] == "1"


MOUNTINFO = """\
1 0 0:1 / / ro,nosuid,nodev - tmpfs tmpfs rw
2 1 8:1 /usr /usr ro,nosuid,nodev - ext4 /dev/sda rw
3 1 8:1 /in /forge/inputs/a\\040b ro,nosuid,nodev,relatime - ext4 /dev/sda rw
4 1 8:1 /in /twice rw - ext4 /dev/sda rw
5 1 8:1 /in /twice ro - ext4 /dev/sda rw
"""


def test_mount_options_by_point() -> None:
    found = bubblewrap._mount_options(MOUNTINFO)
    assert found["/"] == {"ro", "nosuid", "nodev"}
    assert found["/forge/inputs/a b"] == {"ro", "nosuid", "nodev", "relatime"}
    assert found["/twice"] == {"ro"}


def test_groups_of_a_process() -> None:
    assert bubblewrap._groups("9:cpu,cpuacct:/forge/x\n8:name=systemd:/\n0::/a:b\n") == {
        "cpu:/forge/x", "cpuacct:/forge/x", "name=systemd:/", ":/a:b"
    }  # fmt: skip


ME = os.getpid()
READ_ONLY = {"/": {"ro", "nosuid"}, "/usr": {"ro", "nosuid"}, "/etc/fonts": {"ro", "nosuid"}}


class TestVerifyTree:
    """Against this very process, which is in no sandbox at all: everything that is not as the plan says is refused."""

    def test_a_file_that_was_swapped(self, plan: LaunchPlan, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        swapped = msgspec.structs.replace(plan, binds=(Bind(source="/host/x", target=f"{tmp_path}/x", device=1, inode=2),))
        with pytest.raises(SandboxError, match="/host/x changed while it was mounted"):
            bubblewrap.verify_tree(swapped, ME)

    def test_an_input_that_can_be_written(self, plan: LaunchPlan, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        facts = (tmp_path / "x").stat()
        bind = Bind(source="/host/x", target=f"{tmp_path}/x", device=facts.st_dev, inode=facts.st_ino)
        with pytest.raises(SandboxError, match="/x is not mounted read-only"):
            bubblewrap.verify_tree(msgspec.structs.replace(plan, binds=(bind,)), ME)

    @pytest.mark.parametrize("path", READ_ONLY)
    def test_a_system_folder_that_can_be_written(self, plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
        monkeypatch.setattr(bubblewrap, "_mount_options", lambda text: READ_ONLY | {path: {"rw", "nosuid"}})
        with pytest.raises(SandboxError, match=f"{path} is not mounted read-only"):
            bubblewrap.verify_tree(msgspec.structs.replace(plan, binds=()), ME)

    def test_a_shared_namespace(self, plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bubblewrap, "_mount_options", lambda text: READ_ONLY)
        with pytest.raises(SandboxError, match="shares the host's mnt namespace"):
            bubblewrap.verify_tree(msgspec.structs.replace(plan, binds=()), ME)


class TestVerifyCommand:
    """The same: a process that did not go where it should, or kept what it should not have."""

    def test_a_namespace_that_is_not_the_sandbox(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bubblewrap, "_namespace", lambda pid, name: pid)
        with pytest.raises(SandboxError, match="another mnt namespace than the sandbox'"):
            bubblewrap.verify_command(OWN_UID, ME, 1, set())

    def test_the_hosts_cgroup_namespace(self) -> None:
        with pytest.raises(SandboxError, match="shares the host's cgroup namespace"):
            bubblewrap.verify_command(OWN_UID, ME, ME, set())

    def test_the_user_namespace_of_bubblewraps_own_processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """There it could write into the memory of processes that are under no filter and in no group of the execution."""
        monkeypatch.setattr(bubblewrap, "_namespace", lambda pid, name: 1 if pid == "self" else 2)
        with pytest.raises(SandboxError, match="user namespace of bubblewrap's own processes"):
            bubblewrap.verify_command(USER, ME, ME, set())

    @pytest.fixture
    def in_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bubblewrap, "_namespace", lambda pid, name: 1 if pid == "self" else 2)

    def test_another_cgroup(self, in_place: None) -> None:
        with pytest.raises(SandboxError, match=r"not in its cgroup: \['memory:/forge/nowhere'\]"):
            bubblewrap.verify_command(OWN_UID, ME, ME, {"memory:/forge/nowhere"})

    def test_other_users_in_the_namespace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            bubblewrap, "_namespace", lambda pid, name: (pid, name) if name == "user" else 1 if pid == "self" else 2
        )
        with pytest.raises(SandboxError, match="maps other users"):
            bubblewrap.verify_command(USER, ME, os.getppid(), set())

    def test_a_process_that_gave_up_nothing(self, in_place: None) -> None:
        with pytest.raises(SandboxError, match="The command would start with"):
            bubblewrap.verify_command(OWN_UID, ME, ME, set())

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("Uid", "1879000001 1879000001 0 1879000001"), ("Gid", "0 0 0 0"), ("Groups", "0"), ("NoNewPrivs", "0"), ("Seccomp", "0"),
            ("CapEff", "0000000000000001"), ("CapBnd", "000001ffffffffff"), ("CapInh", "0000000000000100"),
            ("CapAmb", "0000000000000100"), ("CapPrm", "0000000000200000"),
        ],
    )  # fmt: skip
    def test_each_privilege_is_looked_at(self, name: str, value: str) -> None:
        good = {
            "Uid": " ".join(["1879000001"] * 4), "Gid": " ".join(["1879000001"] * 4), "Groups": "", "NoNewPrivs": "1", "Seccomp": "2",
            **dict.fromkeys(("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"), "0" * 16),
        }  # fmt: skip

        def text(facts: dict[str, str]) -> str:
            return "".join(f"{key}:\t{words}\n" for key, words in facts.items())

        bubblewrap._verify_privileges(OWN_UID, text(good))
        with pytest.raises(SandboxError, match=f"would start with {name} {value}"):
            bubblewrap._verify_privileges(OWN_UID, text(good | {name: value}))
        with pytest.raises(SandboxError, match=f"would start with {name} unknown"):
            bubblewrap._verify_privileges(OWN_UID, text({key: words for key, words in good.items() if key != name}))


class TestLastWords:
    """What `env` is started with, once nothing is left to give away."""

    def words(self, plan: LaunchPlan) -> list[str]:
        return last_words(
            Launch(
                command=plan.command, environment=plan.environment, identity=OWN_UID, join_files=("/c",), open_files=16,
                file_size_bytes=None,
            )
        )  # fmt: skip

    def test_the_command_is_last_and_as_it_was_given(self, plan: LaunchPlan) -> None:
        assert tuple(self.words(plan)[-len(COMMAND) :]) == COMMAND

    def test_a_variable_cannot_pass_for_an_option_of_env(self, plan: LaunchPlan) -> None:
        """`env` takes words with `=` for variables until the first without; each of ours has one, and begins with a letter."""
        words = self.words(plan)
        assert words[:2] == ["env", "-i"]
        for word in words[2 : 2 + len(plan.environment)]:
            assert "=" in word and not word.startswith("-")
        assert {f"{name}={value}" for name, value in HOSTILE.items()} <= set(words)


def test_this_hosts_bubblewrap_knows_every_option(plan: LaunchPlan, identity: Identity) -> None:
    """Or the sandbox would fail on this host for a reason that no other test names."""
    import subprocess

    from forge_orchestration_tests.conftest import prerequisite

    prerequisite(shutil.which("bwrap"), "bubblewrap is not installed")
    known = subprocess.run(["bwrap", "--help"], capture_output=True, text=True, timeout=30).stdout
    for word in arguments(plan, identity):
        if word.startswith("--"):
            assert f"{word} " in known or f"{word}\n" in known, word
