"""Connects to the outside: by address, to the metadata services of clouds, by name through each resolver."""

import socket
import urllib.request

from evidence import attempt, connect, done

for address in (
    "192.0.2.1",
    "198.51.100.1",
    "169.254.169.254",
    "100.100.100.200",
    "10.0.0.1",
    "172.17.0.1",
    "192.168.1.1",
    "8.8.8.8",
):
    attempt(f"tcp {address}", connect, socket.AF_INET, (address, 80))
for address in ("2001:db8::1", "fd00:ec2::254"):
    attempt(f"tcp {address}", connect, socket.AF_INET6, (address, 80, 0, 0))
for name in ("example.org", "metadata.google.internal", "host.docker.internal", "forge.local"):
    attempt(f"name {name}", socket.getaddrinfo, name, 80)


def ask(server):
    query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(0.2)
        one.sendto(query, (server, 53))
        return one.recv(512)


for server in ("127.0.0.53", "127.0.0.1", "1.1.1.1", "192.0.2.53"):
    attempt(f"resolver {server}", ask, server)
attempt("web", urllib.request.urlopen, "http://192.0.2.1/", timeout=2)
done()
