"""Attacks that read: secrets of the host, Forge's own files, other executions, other processes, the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forge_orchestration_tests.conftest import Forge
from forge_orchestration_tests.security.arena import AS_ROOT, LIMITS, OWN_UIDS, Arena, StillOpen, closed

HIDDEN = ("ENOENT", "EACCES", "EPERM", "ENOTDIR")
REFUSED = {
    "host_files": HIDDEN,
    "forge_home": HIDDEN,
    "running_neighbour": HIDDEN,
    "climbing_out": HIDDEN,
    "links_in_inputs": HIDDEN,
    "memory_of_processes": (*HIDDEN, "ESRCH", "EIO"),
    "kernel_memory": HIDDEN,
    "kernel_log": HIDDEN,
    "keys": HIDDEN,
    "disks": HIDDEN,
    "file_handles": ("EPERM",),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(arena: Arena, name: str) -> None:
    outcome = arena.run(f"read/{name}")
    outcome.assert_refused(*REFUSED[name])
    outcome.assert_ended("completed")


def test_what_was_hidden_is_there(arena: Arena) -> None:
    """Else the refusals above would say nothing."""
    targets = arena.targets()
    for name in ("secret", "readable", "open_folder", "home", "victim", "neighbour", "shm_file", "socket"):
        assert os.path.exists(str(targets[name])), name
    scratch = str(targets["neighbour_scratch"])
    if AS_ROOT:  # it is mounted in its supervisor's own mount namespace: elsewhere its mount point is empty
        assert os.listdir(scratch) == []
        scratch = f"/proc/{targets['supervisor_pid']}/root{scratch}"
    assert {"scratch", "outputs", "checkpoint", "tmp"} <= set(os.listdir(scratch))
    assert (arena.canaries.inputs / "links" / "absolute").read_text() == arena.canaries.token
    assert Path(arena.victim.folder, "outputs", "result.txt").read_text().strip() == arena.canaries.token
    for pid in (targets["controller_pid"], targets["supervisor_pid"]):
        assert os.path.exists(f"/proc/{pid}/environ")


def test_the_first_process(arena: Arena) -> None:
    """An ordinary user's belongs to the same user, but to another user namespace."""
    outcome = arena.run("read/first_process")
    # of its descriptors the same user may see the numbers, and nothing behind them
    assert len(outcome.attempts) == 18, outcome
    numbers = outcome.errors()["fd"]
    assert numbers in ((*HIDDEN,) if OWN_UIDS else (None, *HIDDEN)), outcome
    outcome.assert_refused(*HIDDEN, but={"fd": numbers})
    outcome.assert_ended("completed")


def test_processes_of_the_host(arena: Arena) -> None:
    outcome = arena.run("read/processes_of_host")
    outcome.assert_refused("ENOENT", "ESRCH")
    # bubblewrap's inner process, its placeholder, and the program itself; the last two in either order, and the placeholder
    # may not have begun yet
    listed, names = outcome.facts["listed"], outcome.facts["names"]
    assert isinstance(listed, list) and isinstance(names, list) and outcome.facts["answering"] == listed, outcome
    others = {pid: name for pid, name in zip(listed, names, strict=True) if pid != outcome.facts["own"]}
    assert len(others) == len(listed) - 1 == 2 and others.pop(1) == "bwrap", outcome
    assert set(others.values()) <= {"cat", "bwrap"}, outcome
    outcome.assert_ended("completed")


def test_inherited_descriptors(arena: Arena) -> None:
    outcome = arena.run("read/inherited_descriptors")
    assert outcome.facts["descriptors"] == {"0": "c", "1": "p", "2": "p"}, outcome  # /dev/null and two pipes
    outcome.assert_refused("ENOTDIR", "EBADF", but={"standard input": None})
    outcome.assert_ended("completed")


def test_the_environment(arena: Arena, forge: Forge) -> None:
    """Through a new controller, whose environment holds a secret."""
    beats = arena.neighbour.beats()
    inputs = [word for name, path in arena.inputs("read/environment").items() for word in ("--input", f"{name}={path}")]
    secret = {"AWS_SECRET_ACCESS_KEY": arena.canaries.token, "DAGSTER_HOME": "/nonexistent", "LD_LIBRARY_PATH_OF_HOST": "x"}
    limits = [word for name, value in LIMITS.items() for word in (f"--{name.replace('_', '-')}", value)]
    record = forge.record("exec", *limits, *inputs, "--", "python", "/forge/inputs/attack.py", env=secret)
    arena.look_around(record, beats)
    outcome = arena.outcome(record)
    seen = outcome.facts["environment"]
    assert (
        isinstance(seen, dict)
        and not {*secret, "FORGE_HOME", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR", "PYTEST_CURRENT_TEST"} & seen.keys()
    )
    assert seen["HOME"] == seen["TMPDIR"] == "/forge/scratch"
    assert {name for name in seen if name.startswith("FORGE_")} == {
        "FORGE_ANALYSIS", "FORGE_INPUTS", "FORGE_PARAMS", "FORGE_OUTPUTS", "FORGE_CHECKPOINT", "FORGE_MESSAGES", "FORGE_SCRATCH",
        "FORGE_SEED", "FORGE_THREADS", "FORGE_DEADLINE",
    }  # fmt: skip
    # it was started from outside: inside it has no parent
    assert outcome.facts["parent"] == 0, outcome
    outcome.assert_refused("EACCES", but={"as started": None, "of the parent": "ENOENT"})
    assert all(one.got in ("", "b''") for one in outcome.attempts if one.attempt != "as started"), outcome
    outcome.assert_ended("completed")


def test_kernel_addresses(arena: Arena) -> None:
    outcome = arena.run("read/kernel_addresses")
    outcome.assert_refused(*HIDDEN)
    assert outcome.facts["symbols"] == 0 and outcome.facts["memory"] == 0, outcome
    assert outcome.facts["modules"] in (0, "No such file or directory"), outcome
    outcome.assert_ended("completed")


def test_a_crash_leaves_no_core(arena: Arena) -> None:
    outcome = arena.run("read/core_dump")
    # both say that they were done, and do nothing
    assert outcome.finished and outcome.errors() == {"no limit on core files": None, "none at all": None}, outcome
    assert outcome.facts["signal"] == 11 and outcome.facts["dumped"] is False and outcome.facts["files"] == [], outcome
    assert outcome.facts["limit"] == [1, 1], outcome  # 0 would still start a handler that is a pipe
    outcome.assert_ended("completed")


def test_remains_of_others(arena: Arena) -> None:
    """An execution before it has filled the same kind of scratch space with something to find."""
    arena.run("exhaust/disk_space", folder="/forge/scratch")
    outcome = arena.run("read/remains_of_others")
    assert outcome.finished and outcome.errors() == {"allocate": None, "past the page cache": None}, outcome
    assert isinstance(outcome.facts["read"], int) and outcome.facts["read"] > 7 << 20 and outcome.facts["not_zero"] == 0, outcome
    assert [one["holds"] for one in outcome.said if "holds" in one] == [[]] * 5
    outcome.assert_ended("completed")


def test_ipc_objects(arena: Arena) -> None:
    outcome = arena.run("read/ipc_objects")
    tables = {f"/proc/sysvipc/{name}": None for name in ("shm", "sem", "msg")}
    outcome.assert_refused("ENOENT", "EINVAL", but=tables)
    assert [one.got for one in outcome.attempts if one.attempt in tables] == ["0", "0", "0"], outcome
    outcome.assert_ended("completed")


def test_sockets_of_the_host(arena: Arena) -> None:
    outcome = arena.run("read/sockets_of_host")
    assert outcome.finished and len(outcome.attempts) == 10 and outcome.facts["found"] == [], outcome
    assert None in outcome.errors().values()  # there were tables to search
    outcome.assert_ended("completed")


def test_users_of_the_host(arena: Arena) -> None:
    outcome = arena.run("read/users_of_host")
    outcome.assert_refused("ENOENT")
    assert outcome.facts["users"] == ["root", "forge", "nobody"] and outcome.facts["groups"] == ["root", "forge", "nogroup"], (
        outcome
    )
    # of an ordinary user's groups, a namespace maps only the first; the rest are there without a name
    assert outcome.facts["groups_of_it"] == [] or (not OWN_UIDS and set(outcome.facts["groups_of_it"]) <= {os.getgid(), 65534}), (
        outcome
    )  # type: ignore[call-overload]
    outcome.assert_ended("completed")


def test_parents_of_mounts(arena: Arena) -> None:
    outcome = arena.run("read/parents_of_mounts")
    folders = outcome.facts["folders"]
    assert isinstance(folders, dict) and not {"run", "var", "home", "sys", "boot", "srv", "mnt"} & set(folders.pop("/")), outcome
    assert all(len(names) == 1 for names in folders.values()), outcome  # the way to what was mounted, and nothing beside it
    outcome.assert_ended("completed")


def test_the_mount_table(arena: Arena) -> None:
    outcome = arena.run("read/mount_table")
    assert outcome.finished and len(outcome.attempts) == 7 and outcome.facts["told"] and outcome.facts["others"] == [], outcome
    outcome.assert_ended("completed")


@pytest.mark.xfail(raises=StillOpen, strict=True, reason="inotify sees what the host does with the files that are shared")
def test_activity_of_the_host(arena: Arena) -> None:
    def use_the_file(fact: dict[str, object]) -> None:
        if "watching" in fact:
            for _ in range(3):
                arena.canaries.data.read_bytes()

    outcome = arena.run("read/activity_of_host", on_fact=use_the_file)
    assert outcome.finished, outcome
    outcome.assert_ended("completed")
    closed(outcome.facts["events"] == 0, outcome)


def test_own_messages(arena: Arena) -> None:
    outcome = arena.run("read/own_messages")
    assert outcome.finished and len(outcome.attempts) == 3, outcome
    outcome.assert_ended("completed")
    if OWN_UIDS:  # an ordinary user's execution is the same user
        assert outcome.errors() == {"open for reading": "EACCES", "make it readable": "EPERM", "open again": "EACCES"}, outcome
        assert outcome.facts["readable"] is False, outcome
