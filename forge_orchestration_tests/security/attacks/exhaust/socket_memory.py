"""Fills the buffers of sockets that nobody reads, in the family that the test names: the kernel's memory, not the program's.

It takes 128 MiB and no more: were it not counted, the host would have to give it.
"""

import contextlib
import socket
import struct

from evidence import TARGETS, attempt, done, say

WANTED = 128 << 20
kept = []


def internet_streams():
    total = 0
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1000)
    kept.append(listener)
    while total < WANTED:
        ours = socket.socket()
        ours.connect(listener.getsockname())
        kept.extend((ours, listener.accept()[0]))
        ours.setblocking(False)
        before = total
        with contextlib.suppress(BlockingIOError):
            while total < WANTED:
                total += ours.send(bytes(65_536))
        if total - before < 65_536:
            break  # the kernel gives no more
    return total


def internet_datagrams():
    total = 0
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while total < WANTED:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind(("127.0.0.1", 0))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        kept.append(one)
        for _ in range(12):
            sender.sendto(bytes(30_000), one.getsockname())
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.recv(1, socket.MSG_PEEK)
            total += 12 * 30_000
            continue
        break
    return total


def orphans():
    """Many small connections, closed with what nobody has read: none of them is anybody's any more."""
    total = 0
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1000)
    while len(kept) < 3500:
        ours = socket.socket()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        ours.connect(listener.getsockname())
        kept.append(listener.accept()[0])
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                total += ours.send(bytes(1024))
        ours.close()
    return total


def netlink_answers():
    total = 0
    while total < WANTED:
        one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        one.setblocking(False)
        kept.append(one)
        with contextlib.suppress(OSError):
            for _ in range(400):  # RTM_GETLINK without a name: each is answered, and nobody reads the answers
                one.send(struct.pack("IHHII4x", 20, 18, 1, 1, 0))
        held = struct.unpack_from("I", one.getsockopt(socket.SOL_SOCKET, 55, 36))[0]  # SO_MEMINFO: bytes that wait to be read
        if held < 65_536:
            break  # the kernel gives no more
        total += held
    return total


say(form=TARGETS["form"])
taken = attempt("all of it", globals()[TARGETS["form"]])
say(taken_bytes=taken)
done()
