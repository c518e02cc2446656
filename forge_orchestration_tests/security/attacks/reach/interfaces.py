"""Makes a way out of its network: interfaces, addresses, routes and rules, by netlink and by ioctl."""

import fcntl
import os
import socket
import struct

from evidence import attempt, done, read, say

NEWLINK, NEWADDR, NEWROUTE, NEWRULE, NEWNEIGH = 16, 20, 24, 32, 28


def ask(kind, body):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
        one.sendall(struct.pack("IHHII", 16 + len(body), kind, 0x605, 1, 0) + body)
        code = struct.unpack_from("i", one.recv(4096), 16)[0]
    if code < 0:
        raise OSError(-code, os.strerror(-code))


kind = struct.pack("HH", 8, 1) + b"veth"
name = struct.pack("HH", 9, 3) + b"harm\0".ljust(8, b"\0")
attempt("virtual cable", ask, NEWLINK, struct.pack("BxHiII", 0, 0, 0, 0, 0) + name + struct.pack("HH", 4 + len(kind), 18) + kind)
attempt("address", ask, NEWADDR, struct.pack("BBBBI", 2, 24, 0, 0, 1) + struct.pack("HH4B", 8, 2, 10, 0, 0, 9))
attempt("route", ask, NEWROUTE, struct.pack("8BI", 2, 0, 0, 0, 254, 3, 0, 1, 0) + struct.pack("HHI", 8, 4, 1))
attempt("rule", ask, NEWRULE, struct.pack("8BI", 2, 0, 0, 0, 254, 3, 0, 1, 0))
attempt("neighbour", ask, NEWNEIGH, struct.pack("BxHiHBB", 2, 0, 1, 0x80, 0, 1) + struct.pack("HH4B", 8, 1, 10, 0, 0, 1))
with socket.socket() as one:
    request = struct.pack("16sH2s4s8s", b"lo", socket.AF_INET, b"", socket.inet_aton("10.0.0.9"), b"")
    for title, number in {
        "SIOCSIFADDR": 0x8916,
        "SIOCSIFFLAGS": 0x8914,
        "SIOCADDRT": 0x890B,
        "SIOCSIFNAME": 0x8923,
        "SIOCBRADDBR": 0x89A0,
        "SIOCSIFMTU": 0x8922,
    }.items():
        attempt(title, fcntl.ioctl, one, number, request.ljust(120, b"\0"))
    for title, level, option in (
        ("firewall", socket.IPPROTO_IP, 64),
        ("mark", socket.SOL_SOCKET, 36),
        ("device", socket.SOL_SOCKET, 25),
        ("transparent", socket.IPPROTO_IP, 19),
    ):
        attempt(f"option {title}", one.setsockopt, level, option, b"lo\0\0" if title == "device" else struct.pack("I", 1))
attempt("tunnel", os.open, "/dev/net/tun", os.O_RDWR)
say(interfaces=[line.split(":")[0].strip() for line in read("/proc/net/dev", 4096).decode().splitlines()[2:]])
done()
