"""Connects to the sockets by which a host is ruled: docker, systemd, D-Bus, PostgreSQL, and one of the test's own."""

import os
import socket

from evidence import TARGETS, attempt, connect, done

SOCKETS = (
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
    "/run/systemd/notify",
    "/run/systemd/journal/socket",
    "/dev/log",
    "/run/snapd.socket",
    "/run/udev/control",
    "/var/run/postgresql/.s.PGSQL.5432",
    "/tmp/.s.PGSQL.5432",
    "/var/run/mysqld/mysqld.sock",
    "/tmp/.X11-unix/X0",
    "/run/user/0/bus",
    "/run/user/1000/bus",
    "/var/run/nscd/socket",
    "/run/forge",
    "/run/lock",
)
for path in (TARGETS["socket"], *SOCKETS):
    attempt(path, connect, socket.AF_UNIX, path)
    attempt(f"/proc/1/root{path}", connect, socket.AF_UNIX, f"/proc/1/root{path}")
os.symlink(TARGETS["socket"], "/forge/scratch/link")
attempt("through a link", connect, socket.AF_UNIX, "/forge/scratch/link")
done()
