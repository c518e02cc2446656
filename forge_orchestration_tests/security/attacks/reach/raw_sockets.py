"""Opens sockets that see and forge whole packets."""

import socket

from evidence import attempt, done, syscall

for name, protocol in {"icmp": 1, "tcp": 6, "udp": 17, "any": 255}.items():
    attempt(f"raw {name}", socket.socket, socket.AF_INET, socket.SOCK_RAW, protocol)
    attempt(f"raw {name} of v6", socket.socket, socket.AF_INET6, socket.SOCK_RAW, protocol)
for name, kind in (("raw", socket.SOCK_RAW), ("datagram", socket.SOCK_DGRAM), ("old", 10)):
    attempt(f"packet {name}", syscall, "socket", 17, kind, 0x0300)
attempt("ping", socket.socket, socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
attempt("ping of v6", socket.socket, socket.AF_INET6, socket.SOCK_DGRAM, 58)
attempt("express data path", syscall, "socket", 44, 3, 0)
done()
