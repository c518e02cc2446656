"""Connects to abstract sockets of the host, which lie in no folder and obey no mount: D-Bus and X11 had theirs there."""

import socket

from evidence import TARGETS, attempt, connect, done

for name in (
    TARGETS["abstract"],
    TARGETS["neighbour_abstract"],
    "/tmp/.X11-unix/X0",
    "/run/systemd/journal/stdout",
    "/tmp/dbus-harm",
    "/containerd-shim/harm",
):
    attempt(f"stream {name}", connect, socket.AF_UNIX, "\0" + name)
    attempt(f"datagram {name}", connect, socket.AF_UNIX, "\0" + name, socket.SOCK_DGRAM)
    attempt(f"packets {name}", connect, socket.AF_UNIX, "\0" + name, socket.SOCK_SEQPACKET)
done()
