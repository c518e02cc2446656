"""Attacks that write: to the host, the inputs, the runtime, the record and the kernel's settings, in every roundabout way."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

import forge_orchestration
from forge_orchestration_tests.security.arena import AS_ROOT, LIMITS, Arena, StillOpen, closed

OF_NAMESPACES = [f"/proc/sys/kernel/{name}" for name in ("pid_max", "shmmax", "msgmax")]
READ_ONLY = ("EROFS", "EACCES", "EPERM", "EBADF", "ENOENT")
REFUSED: dict[str, tuple[str, ...]] = {
    "system_files": READ_ONLY,
    "inputs": (*READ_ONLY, "EINVAL"),  # ftruncate of a descriptor that is not for writing
    "input_folder": (*READ_ONLY, "EXDEV"),
    "reopened_descriptors": READ_ONLY,
    "runtime": READ_ONLY,
    "hard_links": ("EXDEV", "EPERM", "EROFS", "ENOENT"),  # by a descriptor, kernels before 6.10 find nothing
    "mount_points": (*READ_ONLY, "EXDEV", "EBUSY", "EEXIST"),
    "devices": (*READ_ONLY, "EBUSY"),
    "copies_without_writes": (*READ_ONLY, "EXDEV", "EINVAL", "EOPNOTSUPP"),
    "file_system_calls": ("EPERM", "EACCES", "ENOTTY", "EOPNOTSUPP"),
    "clock_and_names": ("EPERM", "EACCES", "ENOENT"),
    "links_to_host": ("ENOENT", "ENOTDIR"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(arena: Arena, name: str) -> None:
    outcome = arena.run(f"write/{name}")
    outcome.assert_refused(*REFUSED[name])
    # the links that it planted among its outputs are not kept
    outcome.assert_ended("output_rejected" if name == "links_to_host" else "completed")


def test_the_first_process(arena: Arena) -> None:
    outcome = arena.run("write/first_process")
    if AS_ROOT:
        outcome.assert_refused("EACCES", "EPERM", "ESRCH", "EINVAL")
    else:  # see the same attack among those that read: there is nothing to be won
        assert outcome.finished and len(outcome.attempts) == 17, outcome
    outcome.assert_ended("completed")


def test_kernel_settings(arena: Arena) -> None:
    outcome = arena.run("write/kernel_settings")
    # some are, in newer kernels, those of the process' own namespaces, and an ordinary user owns these
    own = {} if AS_ROOT else {what: outcome.errors()[what] for what in OF_NAMESPACES}
    outcome.assert_refused("EACCES", "EPERM", "ENOENT", "EROFS", "EISDIR", but=own)
    assert len(outcome.attempts) == 40
    outcome.assert_ended("completed")


def test_own_identity(arena: Arena) -> None:
    outcome = arena.run("write/own_identity")
    # whose login it is may be said once, by whoever has none: it gives no right to anything
    login = outcome.errors()["loginuid"]
    assert login in (None, "EPERM", "EACCES", "EINVAL"), outcome
    outcome.assert_refused("EPERM", "EACCES", "EINVAL", "ENOENT", but={"loginuid": login})
    outcome.assert_ended("completed")


def test_its_own_files(arena: Arena, tmp_path: Path) -> None:
    folder = arena.program("write/analysis_files").parents[2] / "analysis"
    folder.mkdir()
    for name in ("write/analysis_files", "evidence"):
        (folder / ("evidence.py" if name == "evidence" else "attack.py")).write_text(arena.program(name).read_text())
    (folder / "analysis.yaml").write_text("description: hostile\nruntime: forge-python\ncommand: [python, attack.py]\n")
    beats = arena.neighbour.beats()
    record = forge_orchestration.run(str(folder), limits=LIMITS)
    arena.look_around(record, beats)
    outcome = arena.outcome(record)
    # analysis.yaml is no file of the program, whether or not it is there to be seen
    outcome.assert_refused("EROFS", "EACCES", "ENOENT")
    assert outcome.errors()["write attack.py"] != "ENOENT" and outcome.errors()["new"] == "EROFS", outcome
    assert Path(record.folder, "analysis", "attack.py").read_text() == (folder / "attack.py").read_text()
    outcome.assert_ended("completed")


def test_records_and_logs(arena: Arena) -> None:
    outcome = arena.run("write/records_and_logs")
    # a lock on its own pipe is a lock on nobody else's
    outcome.assert_refused("ENOENT", "ENOTDIR", "EROFS", "EINVAL", "ESPIPE", "EBUSY", but={"lock own log": None})
    outcome.assert_ended("completed")


def test_private_mappings(arena: Arena) -> None:
    outcome = arena.run("write/private_mapping")
    outcome.assert_ended("completed")
    private, shared = (one for one in outcome.said if "mapping" in one)
    assert outcome.errors()["shared"] in ("EIO", "EFAULT", "EACCES"), outcome
    assert private["file"] == shared["file"] == shared["seen"] == "as i", outcome
    # its own copy is its own business
    assert outcome.errors()["private"] is not None or private["seen"] == "harm", outcome


@pytest.mark.parametrize("name", ["dirty_cow", "dirty_pipe"])
def test_holes_that_kernels_had(arena: Arena, name: str) -> None:
    outcome = arena.run(f"write/{name}")
    assert outcome.finished and outcome.facts["file"] == "as i", outcome
    if name == "dirty_cow":
        assert isinstance(outcome.facts["written"], int) and outcome.facts["written"] > 0, outcome
    else:
        assert outcome.errors() == {"splice": None, "write": None}, outcome
    outcome.assert_ended("completed")


def test_terminals(arena: Arena) -> None:
    outcome = arena.run("write/terminals")
    # none is there, not even a list of them; /dev/tty stands for the terminal of a session that has none
    outcome.assert_refused("ENOENT", but={"/dev/tty": "ENXIO", "controlling terminal": None})
    outcome.assert_ended("completed")


def test_names_in_tmp(arena: Arena) -> None:
    outcome = arena.run("write/tmp_of_host")
    assert outcome.finished, outcome
    for what, error in outcome.errors().items():
        if what.startswith(("overwrite", "remove")):
            assert error == "ENOENT", outcome
        else:
            assert error is None, outcome  # in a /tmp of its own
    assert not Path("/tmp/forge-harm").exists() and not Path("/dev/shm/forge-harm").exists()
    outcome.assert_ended("completed")


def test_a_race_of_names(arena: Arena) -> None:
    outcome = arena.run("write/rename_race")
    assert outcome.finished and outcome.facts["exchanged"] and outcome.facts["refused"] and outcome.facts["written"], outcome
    outcome.assert_ended("completed")


def test_leases(arena: Arena) -> None:
    outcome = arena.run("write/leases")
    outcome.assert_refused("EACCES", "EPERM", "EBADF", "EAGAIN")
    assert outcome.finished and len(outcome.attempts) == 12, outcome
    outcome.assert_counted("fcntl")
    outcome.assert_ended("completed")


@pytest.mark.xfail(
    raises=StillOpen, strict=True, reason="flock needs no right to write, and inputs and runtimes are the host's own inodes"
)
def test_locks_on_inputs(arena: Arena) -> None:
    refused: list[str] = []

    def lock_on_the_host(fact: dict[str, object]) -> None:
        if "locked" in fact:
            for path in (arena.canaries.data, arena.canaries.inputs / "inner.txt"):
                with open(path) as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    except BlockingIOError:
                        refused.append(path.name)

    outcome = arena.run("write/locks_on_inputs", on_fact=lock_on_the_host)
    assert outcome.finished and len(outcome.attempts) == 3, outcome
    outcome.assert_ended("completed")
    closed(not refused, refused)
