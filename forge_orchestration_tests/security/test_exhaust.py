"""Attacks that take all there is: memory, processes, disk, descriptors, logs, messages, and the kernel's small objects."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import forge_orchestration
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.sandbox.supervisor_identity import read_supervisor
from forge_orchestration_tests.security.arena import LIMITS, Arena, StillOpen, closed

AS_ROOT = os.geteuid() == 0
CGROUP_V1 = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
MIB = 1 << 20
MEMORY_BYTES, SCRATCH_BYTES, LOG_BYTES, PIDS = 64 * MIB, 8 * MIB, MIB, 32
assert (LIMITS["memory"], LIMITS["scratch"], LIMITS["log"], LIMITS["pids"]) == ("64MiB", "8MiB", "1MiB", "32")


@pytest.mark.parametrize(
    "form",
    [
        "heap", "one_child", "many_small_children", "shared_memory_folder", "memory_files", "shared_mapping", "system_v", "pipes",
        "local_sockets", "message_queues", "page_tables", "stacks", "secret_memory",
    ],
)  # fmt: skip
def test_memory(arena: Arena, form: str) -> None:
    outcome = arena.run("exhaust/memory", form=form)
    assert outcome.facts["form"] == form, outcome
    if outcome.errors().get("all of it") == "ENOSYS":
        pytest.skip("this kernel has no memory of that form")
    outcome.assert_ended("memory")
    assert "64.0 MiB" in outcome.record.message and "peak" in outcome.record.message
    peak = outcome.record.usage.peak_memory_bytes
    assert peak is not None and 0.9 * MEMORY_BYTES < peak.value <= MEMORY_BYTES, outcome


UNCOUNTED = pytest.mark.xfail(
    CGROUP_V1, raises=StillOpen, strict=True, reason="cgroup v1 does not count what sockets hold unless it is told to"
)
NETLINK = pytest.mark.xfail(raises=StillOpen, strict=True, reason="no cgroup counts what waits in a netlink socket")


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("internet_streams", marks=UNCOUNTED),
        pytest.param("internet_datagrams", marks=UNCOUNTED),
        pytest.param("netlink_answers", marks=NETLINK),
    ],
)  # fmt: skip
def test_memory_of_sockets(arena: Arena, form: str) -> None:
    outcome = arena.run("exhaust/socket_memory", form=form)
    assert outcome.facts["form"] == form, outcome
    if outcome.finished and outcome.errors()["all of it"] is None:
        outcome.assert_ended("completed")
        taken = outcome.facts["taken_bytes"]
        assert isinstance(taken, int)
        closed(taken <= MEMORY_BYTES, outcome)
    elif not outcome.finished:
        outcome.assert_ended("memory")


def test_page_cache(arena: Arena) -> None:
    outcome = arena.run("exhaust/page_cache", limits={"memory": "32MiB", "scratch": "64MiB"})
    assert outcome.finished and outcome.facts["read"] == 24 * MIB, outcome
    peak = outcome.record.usage.peak_memory_bytes
    assert peak is not None and 24 * MIB < peak.value <= 32 * MIB, outcome
    outcome.assert_ended("completed")


def test_locked_memory(arena: Arena) -> None:
    outcome = arena.run("exhaust/locked_memory")
    if outcome.finished:
        outcome.assert_refused("ENOMEM", "EPERM", "EAGAIN")
        outcome.assert_ended("completed")
    else:  # a host that lets everybody lock what they like: its memory counts all the same
        outcome.assert_ended("memory")


@pytest.mark.parametrize("form", ["plain", "detached", "shell", "threads", "zombies"])
def test_processes(arena: Arena, form: str) -> None:
    outcome = arena.run("exhaust/fork_bomb", form=form)
    assert outcome.facts["form"] == form and outcome.attempts, outcome
    outcome.assert_ended("pids")
    assert "32 processes" in outcome.record.message and "refused" in outcome.record.message
    peak = outcome.record.usage.peak_pids
    assert peak is None or peak.value == PIDS, outcome


@pytest.mark.parametrize("folder", ["/forge/scratch", "/forge/outputs", "/forge/checkpoint", "/tmp"])
def test_disk_space(arena: Arena, folder: str) -> None:
    outcome = arena.run("exhaust/disk_space", folder=folder)
    if AS_ROOT:
        outcome.assert_refused("ENOSPC")
        assert outcome.facts["free"] == 0, outcome
    else:
        assert outcome.attempts or not outcome.finished, outcome  # one file is cut by the kernel, the sum by the supervisor
    outcome.assert_ended("scratch")
    assert "8.0 MiB" in outcome.record.message and "measured" in outcome.record.message
    peak = outcome.record.usage.peak_scratch_bytes
    assert peak is not None and peak.value > 0.9 * SCRATCH_BYTES, outcome
    if AS_ROOT:
        assert peak.value <= SCRATCH_BYTES
    kept = sum(one.bytes for one in outcome.record.outputs)
    assert kept <= SCRATCH_BYTES


@pytest.mark.xfail(not AS_ROOT, raises=StillOpen, strict=True, reason="an ordinary user's scratch folder is limited by bytes alone")
def test_a_million_files(arena: Arena) -> None:
    outcome = arena.run("exhaust/disk_files")
    made = outcome.facts.get("made", 0)
    assert isinstance(made, int)
    closed(made < 1000, outcome)
    if AS_ROOT:
        outcome.assert_refused("ENOSPC")
        assert made > 100, outcome
    outcome.assert_ended("scratch")


def test_names_and_attributes(arena: Arena) -> None:
    outcome = arena.run("exhaust/disk_names")
    if AS_ROOT:
        outcome.assert_refused("ENOSPC", "EMLINK")
    outcome.assert_ended("scratch")


@pytest.mark.parametrize("depth", [10_000])
def test_deep_folders(arena: Arena, depth: int) -> None:
    outcome = arena.run("exhaust/disk_depth", limits={"scratch": "512MiB", "memory": "256MiB"}, depth=depth)
    assert outcome.finished and [one["made"] for one in outcome.said if "made" in one] == [depth, depth], outcome
    outcome.assert_ended("output_rejected")
    assert "more than 32 folders deep" in outcome.record.message and len(outcome.record.rejected_outputs) == 1


def test_sparse_files(arena: Arena) -> None:
    outcome = arena.run("exhaust/disk_sparse")
    sizes = list(outcome.errors().values())
    assert outcome.finished and sizes[-1] is not None, outcome
    if AS_ROOT:
        assert sizes[:2] == [None, None], outcome
        outcome.assert_ended("output_rejected")
        assert "larger than the scratch limit" in outcome.record.message
    else:  # no file of an ordinary user's may be larger than the limit
        assert set(sizes) == {"EFBIG"}, outcome
    assert all(one.bytes == 0 for one in outcome.record.outputs)  # the ones that the kernel refused to make large


def test_descriptors(arena: Arena) -> None:
    outcome = arena.run("exhaust/descriptors")
    outcome.assert_refused("EMFILE")
    assert isinstance(outcome.facts["opened"], int) and outcome.facts["opened"] > 500, outcome
    outcome.assert_ended("completed")


# what ends each: the kernel's refusal, or the memory that all of them are
STOCKS = {
    "timers": ("EAGAIN", "ENOMEM"),
    "queued_signals": ("EAGAIN",),
    "semaphores": ("ENOSPC", "ENOMEM"),
    "event_descriptors": ("EMFILE",),
    "poll_sets": ("EMFILE",),
    "watches": ("EMFILE",),
    "file_locks": (None, "ENOLCK"),
    "mappings": ("ENOMEM",),
    "missing_names": (None,),
}


@pytest.mark.parametrize("form", STOCKS)
def test_small_objects_of_the_kernel(arena: Arena, form: str) -> None:
    outcome = arena.run("exhaust/kernel_objects", form=form, wait=False)
    assert outcome.facts["form"] == form, outcome
    if outcome.record.end_reason == "memory":
        assert not outcome.finished, outcome
    else:
        assert outcome.finished and outcome.errors()["all of them"] in STOCKS[form], outcome
        assert isinstance(outcome.facts["taken"], int) and outcome.facts["taken"] > 50, outcome
        outcome.assert_ended("completed")


def test_terminals_of_the_host(arena: Arena) -> None:
    """While all that there are for sandboxes are taken, the host has its own."""
    pairs: list[tuple[int, int]] = []
    looked = arena.canaries.inputs / "looked"

    def look(fact: dict[str, object]) -> None:
        if "holding" in fact:
            pairs.append(os.openpty())
            looked.touch()

    outcome = arena.run(
        "exhaust/kernel_objects", form="terminals", wait=True, on_fact=look, tidy=lambda: looked.unlink(missing_ok=True)
    )
    for fd in pairs[0]:
        os.close(fd)
    outcome.assert_refused("ENOSPC", "EMFILE")
    outcome.assert_ended("completed")


@pytest.mark.xfail(raises=StillOpen, strict=True, reason="the terminals that sandboxes may have are one stock for all of them")
def test_terminals_of_neighbours(arena: Arena) -> None:
    others: list[bool] = []
    looked = arena.canaries.inputs / "looked"

    def look(fact: dict[str, object]) -> None:
        if "holding" in fact:
            others.append(forge_orchestration.run(["python", "-c", "import os; os.openpty()"], limits=LIMITS).succeeded)
            looked.touch()

    outcome = arena.run(
        "exhaust/kernel_objects", form="terminals", wait=True, on_fact=look, tidy=lambda: looked.unlink(missing_ok=True)
    )
    outcome.assert_refused("ENOSPC", "EMFILE")
    outcome.assert_ended("completed")
    closed(others == [True], outcome)


@pytest.mark.xfail(raises=StillOpen, strict=True, reason="io_setup takes from a stock of the whole host, and is not refused")
def test_asynchronous_io_of_the_host(arena: Arena) -> None:
    """Databases of the host need it to start."""
    left: list[int] = []
    looked = arena.canaries.inputs / "looked"

    def look(fact: dict[str, object]) -> None:
        if "holding" in fact:
            in_use, most = (int(Path("/proc/sys/fs", name).read_text()) for name in ("aio-nr", "aio-max-nr"))
            left.append(most - in_use)
            looked.touch()

    outcome = arena.run(
        "exhaust/kernel_objects", form="asynchronous_io", wait=True, on_fact=look, tidy=lambda: looked.unlink(missing_ok=True)
    )
    assert outcome.finished and len(outcome.attempts) == 1, outcome
    outcome.assert_ended("completed")
    closed(left and left[0] > 32_000, outcome)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_logs(arena: Arena, stream: str) -> None:
    descriptor = {"stdout": 1, "stderr": 2}[stream]
    outcome = arena.run("exhaust/log_flood", descriptor=descriptor, other=3 - descriptor, bytes=100_000_000)
    assert outcome.finished, outcome
    log = outcome.record.logs[stream]
    assert log.bytes + log.truncated_bytes == outcome.facts["written"], outcome.record.logs
    assert os.path.getsize(log.path) == log.bytes <= LOG_BYTES
    outcome.assert_ended("completed")


def test_valid_messages_without_end(arena: Arena) -> None:
    outcome = arena.run("exhaust/message_flood", form="valid", bytes=1 << 40, wait=False)
    assert outcome.attempts and not outcome.finished, outcome
    outcome.assert_ended("output_rejected")
    assert "10000 messages" in outcome.record.message


@pytest.mark.xfail(
    raises=StillOpen, strict=True, reason="messages are capped by their number and length alone: 640 MB, whatever the limits"
)
def test_space_for_messages(arena: Arena) -> None:
    outcome = arena.run("exhaust/message_flood", form="long", bytes=5 * MIB, wait=False)
    assert outcome.attempts, outcome
    size = Path(outcome.record.folder, "messages.jsonl").stat().st_size
    closed(size <= LOG_BYTES, f"{size} bytes of messages were kept, with a log limit of {LOG_BYTES}")


@pytest.mark.parametrize("form", ["blank", "long"])
@pytest.mark.xfail(
    raises=StillOpen,
    strict=True,
    reason="reading messages costs the supervisor many times what writing them costs, outside of all limits",
)
def test_processor_of_the_supervisor(arena: Arena, form: str) -> None:
    """What an execution makes others do for it must not be much more than what it does itself."""
    spent: list[float] = []
    looked = arena.canaries.inputs / "looked"

    def look(fact: dict[str, object]) -> None:
        if "written" in fact:
            assert arena.started is not None
            supervisor = read_supervisor(ExecutionFolder(Path(arena.started.folder).parent, arena.started.execution_id))
            assert supervisor is not None
            fields = Path(f"/proc/{supervisor.pid}/stat").read_text().rsplit(")", 1)[1].split()
            spent.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
            looked.touch()

    outcome = arena.run(
        "exhaust/message_flood", form=form, bytes=24 * MIB, wait=True, on_fact=look, tidy=lambda: looked.unlink(missing_ok=True)
    )
    assert outcome.attempts, outcome
    if outcome.record.end_reason != "output_rejected":
        outcome.assert_ended("completed")
        own = outcome.facts["own_cpu_s"]
        assert isinstance(own, float)
        closed(spent[0] < 0.1 + 3 * own, (spent, own))


def test_processors(arena: Arena) -> None:
    started = time.monotonic()
    outcome = arena.run("exhaust/processor", limits={"cpus": "0.5"}, processes=8, seconds=1)
    assert outcome.finished and outcome.facts["spun"] == 8, outcome
    usage = outcome.record.usage
    assert usage.cpu_user_s and usage.cpu_system_s and usage.wall_s and time.monotonic() > started
    # one period of 0.1 s more than its share may have been begun
    assert usage.cpu_user_s.value + usage.cpu_system_s.value <= 0.5 * usage.wall_s.value + 0.1, usage
    outcome.assert_ended("completed")
