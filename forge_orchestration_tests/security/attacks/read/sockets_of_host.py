"""Looks for the host's connections and listeners in the kernel's tables."""

from evidence import TARGETS, attempt, done, read, say

port = f":{TARGETS['tcp_port']:04X}"
found = []
for name in ("tcp", "tcp6", "udp", "udp6", "unix", "netlink", "packet", "raw", "arp", "route"):
    text = attempt(name, read, f"/proc/net/{name}", 1 << 20)
    found += [name for needle in (port, TARGETS["abstract"], TARGETS["socket"]) if text and needle.encode() in text]
say(found=found)
done()
