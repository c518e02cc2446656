"""Opens internet sockets of rare protocols and kinds, which are other modules of the kernel: SCTP, DCCP, L2TP, encryption."""

import socket

from evidence import attempt, done, syscall

for name, (kind, protocol) in {
    "sctp": (1, 132),
    "sctp packets": (5, 132),
    "packets": (5, 0),
    "dccp": (6, 33),
    "dccp by its kind": (6, 0),
    "l2tp": (2, 115),
    "smc": (1, 256),
    "pgm": (4, 113),
}.items():
    attempt(name, socket.socket, socket.AF_INET, kind, protocol)
    attempt(f"{name} of v6", socket.socket, socket.AF_INET6, kind, protocol)
attempt("crypto", syscall, "socket", 38, 5, 0)
attempt("crypto with flags", syscall, "socket", 38, 5 | 0o2000000 | 0o4000, 0)
done()
