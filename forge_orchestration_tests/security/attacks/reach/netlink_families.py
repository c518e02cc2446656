"""Opens every netlink protocol but the one for its own interfaces: firewall, audit, encryption, devices, connectors."""

import socket

from evidence import attempt, done

for protocol in range(1, 32):
    for kind in (socket.SOCK_RAW, socket.SOCK_DGRAM):
        attempt(f"{protocol} {kind.name}", socket.socket, socket.AF_NETLINK, kind, protocol)
done()
