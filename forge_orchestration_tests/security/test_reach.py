"""Attacks that reach out: the network, the host's loopback, its sockets, its machine, and other executions."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest

from forge_orchestration_tests.security.arena import Arena, StillOpen, closed

UNREACHABLE = ("ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "ENOENT", "EACCES", "EPERM", "EADDRNOTAVAIL")
UNKNOWN = ("EPERM", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT")
REFUSED: dict[str, tuple[str, ...]] = {
    "tcp_of_host": UNREACHABLE,
    "udp_of_host": (*UNREACHABLE, "TimeoutError"),
    "internet": (*UNREACHABLE, "TimeoutError", "gaierror", "URLError"),
    "abstract_sockets": ("ECONNREFUSED",),
    "named_sockets": ("ENOENT", "EACCES", "ENOTDIR", "EPERM"),
    "machine_sockets": (*UNKNOWN, "ENOENT", "EOPNOTSUPP", "ENOTSUP"),
    "netlink_families": ("EPERM",),
    "raw_sockets": (*UNKNOWN, "EACCES"),
    "odd_families": UNKNOWN,
    "odd_pairs": ("EPERM",),
    "odd_protocols": UNKNOWN,
    "ports_of_neighbour": UNREACHABLE,
}
# the calls of who asked for sockets that the filter refuses
COUNTED = dict.fromkeys(("netlink_families", "raw_sockets", "odd_families", "odd_protocols"), ("socket",)) | {
    "machine_sockets": ("socket", "socketpair"),
    "odd_pairs": ("socketpair",),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(arena: Arena, name: str) -> None:
    outcome = arena.run(f"reach/{name}")
    outcome.assert_refused(*REFUSED[name])
    outcome.assert_counted(*COUNTED.get(name, ()))
    outcome.assert_ended("completed")


def test_what_was_unreachable_is_there(arena: Arena) -> None:
    """Else the refusals above would say nothing."""
    targets = arena.targets()
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", targets["tcp_port"])),
        (socket.AF_UNIX, f"\0{targets['abstract']}"),
        (socket.AF_UNIX, targets["socket"]),
    ):
        with socket.socket(family) as one:
            one.connect(address)
    arena.canaries.forget_connections()


def test_interfaces(arena: Arena) -> None:
    outcome = arena.run("reach/interfaces")
    # a socket of its own may be tied to the one interface that there is
    outcome.assert_refused("EPERM", "EACCES", "ENOENT", "EOPNOTSUPP", but={"option device": None})
    assert outcome.facts["interfaces"] == ["lo"], outcome
    outcome.assert_ended("completed")


def test_services_for_the_host(arena: Arena) -> None:
    seen: dict[str, bool] = {}
    looked = arena.canaries.inputs / "looked"

    def look(fact: dict[str, object]) -> None:
        if "listening" in fact:
            port = arena.told["free_port"]
            for what, family, address in (
                ("tcp", socket.AF_INET, ("127.0.0.1", port)),
                ("abstract", socket.AF_UNIX, "\0forge-harm"),
                ("named", socket.AF_UNIX, "/tmp/harm.sock"),
            ):
                with socket.socket(family) as one:
                    seen[what] = one.connect_ex(address) == 0
            looked.touch()

    outcome = arena.run("reach/own_listeners", on_fact=look, tidy=lambda: looked.unlink(missing_ok=True))
    for what, error in outcome.errors().items():
        assert (error is None) == (what not in ("beside an input", "privileged")), outcome
    assert outcome.finished and seen == {"tcp": False, "abstract": False, "named": False}, seen
    outcome.assert_ended("output_rejected")  # a socket is no output
    assert "harm.sock (it is a socket, not a file)" in outcome.record.message


def test_families_with_high_bits(arena: Arena) -> None:
    outcome = arena.run("reach/families_with_high_bits")
    assert outcome.finished and len(outcome.attempts) == 40, outcome
    outcome.assert_ended("completed")
    # whichever of them the kernel has: the filter must have said no before it was asked
    outcome.assert_refused("EPERM")
    outcome.assert_counted("socket")
    assert outcome.record.violations == {"socket": 40}, outcome


@pytest.mark.xfail(
    raises=StillOpen, strict=True, reason="a read-only mount stops no connection to a socket that appears in it later"
)
def test_a_socket_that_appears_later(arena: Arena) -> None:
    path = arena.canaries.inputs / "late.sock"
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as service:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = service.accept()
                heard.append(connection.recv(100))
                connection.close()

        def appear(fact: dict[str, object]) -> None:
            if "waiting" in fact:
                aside = path.with_name("aside")
                service.bind(str(aside))
                aside.chmod(0o777)
                service.listen()
                aside.rename(path)
                threading.Thread(target=serve, daemon=True).start()

        outcome = arena.run("reach/late_socket", on_fact=appear, tidy=lambda: path.unlink(missing_ok=True))
    assert outcome.finished and len(outcome.attempts) == 1, outcome
    outcome.assert_ended("completed")
    closed(not heard and outcome.errors()["connect"] is not None, outcome)


@pytest.mark.xfail(raises=StillOpen, strict=True, reason="a read-only mount stops no write to a FIFO that appears in it later")
def test_a_fifo_that_appears_later(arena: Arena) -> None:
    path = arena.canaries.inputs / "late.fifo"
    readers: list[int] = []

    def appear(fact: dict[str, object]) -> None:
        if "waiting" in fact:
            aside = path.with_name("aside")
            os.mkfifo(aside)
            aside.chmod(0o666)
            readers.append(os.open(aside, os.O_RDONLY | os.O_NONBLOCK))
            aside.rename(path)

    outcome = arena.run("reach/late_fifo", on_fact=appear, tidy=lambda: path.unlink(missing_ok=True))
    heard = os.read(readers[0], 100)
    os.close(readers[0])
    assert outcome.finished and len(outcome.attempts) == 1, outcome
    outcome.assert_ended("completed")
    closed(not heard, outcome)
