"""Connects to services that listen on the host: on its loopback in every spelling, and on each of its addresses."""

import socket

from evidence import TARGETS, attempt, connect, done

port = TARGETS["tcp_port"]
for address in ("127.0.0.1", "localhost", "127.1.2.3", "0.0.0.0", *TARGETS["addresses"]):
    attempt(f"v4 {address}", connect, socket.AF_INET, (address, port))
for address in ("::1", "::", "::ffff:127.0.0.1", "fe80::1"):
    attempt(f"v6 {address}", connect, socket.AF_INET6, (address, port, 0, 1 if address.startswith("fe80") else 0))
for service in (22, 25, 53, 111, 631, 2375, 3000, 3306, 5432, 6379, 6443, 9200, 10250):
    attempt(f"service {service}", connect, socket.AF_INET, ("127.0.0.1", service))
done()
