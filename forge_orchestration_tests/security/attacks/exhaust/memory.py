"""Takes memory until it is stopped, in the form that the test names; each was once not counted by somebody's limit."""

import ctypes
import fcntl
import mmap
import os
import socket
import subprocess
import sys
import time

from evidence import TARGETS, attempt, done, in_child, say, syscall

MIB = 1 << 20
WANTED = 512 * MIB


def heap():
    kept = []
    for _ in range(WANTED // MIB):
        kept.append(bytearray(os.urandom(16)) * (MIB // 16))


def many_small_children():
    code = "x = bytearray(b'x') * (20 << 20); import time; time.sleep(60)"
    for one in [subprocess.Popen([sys.executable, "-c", code]) for _ in range(12)]:
        one.wait()


def one_child():
    in_child(heap)


def shared_memory_folder():
    for number in range(WANTED // (4 * MIB)):
        with open(f"/dev/shm/harm{number}", "wb") as file:
            file.write(bytes(4 * MIB))


def memory_files():
    for _ in range(WANTED // (4 * MIB)):
        os.write(os.memfd_create("harm"), bytes(4 * MIB))


def shared_mapping():
    with mmap.mmap(-1, WANTED) as area:
        for offset in range(0, WANTED, 4096):
            area[offset] = 1


def system_v():
    kept = 0
    while kept < WANTED:
        identifier = syscall("shmget", 0, 8 * MIB, 0o1600)
        address = syscall("shmat", identifier, 0, 0)
        ctypes.memset(address, 1, 8 * MIB)
        kept += 8 * MIB


def pipes():
    kept, total = [], 0
    while total < WANTED:
        reading, writing = os.pipe()
        kept += [reading, writing]
        os.set_blocking(writing, False)
        try:
            fcntl.fcntl(writing, 1031, MIB)  # F_SETPIPE_SZ
            while True:
                total += os.write(writing, bytes(65_536))
        except (BlockingIOError, PermissionError):
            continue


def local_sockets():
    kept, total = [], 0
    while total < WANTED:
        ours, theirs = socket.socketpair()
        kept += [ours, theirs]
        ours.setblocking(False)
        try:
            while True:
                total += ours.send(bytes(65_536))
        except BlockingIOError:
            continue


def message_queues():
    text = ctypes.create_string_buffer(8 + 8192)
    ctypes.c_long.from_buffer(text).value = 1
    while True:
        queue = syscall("msgget", 0, 0o1600)
        try:
            while True:
                syscall("msgsnd", queue, text, 8192, 0o4000)
        except BlockingIOError:
            continue


def page_tables():
    kept = []
    while True:  # one page of each 2 MiB: as much for the table as for the page
        area = mmap.mmap(-1, 1 << 34, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
        kept.append(area)
        for offset in range(0, 1 << 34, 2 * MIB):
            area[offset] = 1


def stacks():
    def grow(depth):
        return [depth] * 10_000 + grow(depth + 1)

    sys.setrecursionlimit(1 << 30)
    grow(0)


def secret_memory():
    os.close(syscall("memfd_secret", 0))  # not every kernel has it
    children = []
    for _ in range(24):
        if (child := os.fork()) == 0:
            fd = syscall("memfd_secret", 0)
            os.ftruncate(fd, 7 * MIB)  # as much as a process may lock
            with mmap.mmap(fd, 7 * MIB) as area:
                for offset in range(0, 7 * MIB, 4096):
                    area[offset] = 1
                time.sleep(60)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


say(form=TARGETS["form"])
attempt("all of it", globals()[TARGETS["form"]])
done()
