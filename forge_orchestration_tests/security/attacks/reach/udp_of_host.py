"""Sends datagrams to the host, to its network and to everybody on it."""

import socket

from evidence import TARGETS, attempt, done


def send(address, family=socket.AF_INET, *options):
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        for option in options:
            one.setsockopt(*option)
        one.settimeout(0.2)
        one.sendto(b"harm", address)
        return one.recv(100)


port = TARGETS["udp_port"]
for address in ("127.0.0.1", *TARGETS["addresses"]):
    attempt(f"to {address}", send, (address, port))
attempt("to ::1", send, ("::1", port), socket.AF_INET6)
attempt("to everybody", send, ("255.255.255.255", port), socket.AF_INET, (socket.SOL_SOCKET, socket.SO_BROADCAST, 1))
attempt("to a group", send, ("224.0.0.251", 5353))
attempt("to a group of v6", send, ("ff02::1", port, 0, 0), socket.AF_INET6)
done()
