"""Opens the refused socket families under a number that differs in the upper half of the register, which the kernel cuts off.

From: filters that compare 64 bits where the kernel looks at 32.
"""

from evidence import attempt, done, syscall

FAMILIES = {
    "packet": (17, 2, 0),
    "alg": (38, 5, 0),
    "vsock": (40, 1, 0),
    "xdp": (44, 3, 0),
    "bluetooth": (31, 3, 1),
    "tipc": (30, 1, 0),
}
for name, (family, kind, protocol) in FAMILIES.items():
    for bit in (32, 40, 63):
        attempt(f"{name} bit {bit}", syscall, "socket", family | (1 << bit if bit < 63 else -(1 << 63)), kind, protocol)
for protocol in range(1, 23):
    attempt(f"netlink {protocol}", syscall, "socket", 16 | 1 << 32, 3, protocol)
done()
