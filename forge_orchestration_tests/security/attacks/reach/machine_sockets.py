"""Opens AF_VSOCK, through which a virtual machine talks to the host of its host, past every network namespace.

The sockets are made and not connected: to have one is enough.
"""

from evidence import attempt, done, ioctl, syscall

for name, kind in (("stream", 1), ("datagram", 2), ("packets", 5)):
    attempt(name, syscall, "socket", 40, kind, 0)
attempt("pair", syscall, "socketpair", 40, 1, 0, bytes(8))
attempt("device", ioctl, "/dev/vsock", 0x7B9)
done()
